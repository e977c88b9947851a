"""Secrets in the URL of a source do not leak into arguments, responses, headers, pages and logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.git_server import GitServer, git_server
from tests.support.nix import wait_until
from tests.support.repository import Repository
from tests.support.server import Server, free_port, run_server

pytestmark = pytest.mark.security

USER, PASSWORD, TOKEN = "robot", "pass-w0rd+x", "t0ken-of-a-query"
SECRETS = (PASSWORD, "pass-w0rd%2Bx", "pass-w0rd%2bx", TOKEN)

FLAKE = """\
{ outputs = { self }: { packages.x86_64-linux.hello = (import ./default.nix { system = "x86_64-linux"; }).hello; }; }
"""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with git_server(tmp_path / "served") as web:
        web.credentials = f"{USER}:{PASSWORD}"
        yield web


@pytest.fixture
def repository(tmp_path: Path, web: GitServer) -> Repository:  # noqa: ARG001 -- it serves the directory
    return Repository(tmp_path / "served" / "set")


def url_of(web: GitServer, path: str, user_info: str = f"{USER}:pass-w0rd%2Bx") -> str:
    return f"http://{user_info}@127.0.0.1:{web.port}/{path}"


def test_the_password_reaches_git_and_nothing_else(
    web: GitServer, repository: Repository, start_server: StartServer
) -> None:
    first = repository.commit("1.0")
    repository.commit("2.0")
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git"))
    for tag in ("latest", "main", first):
        assert server.client.pull("hello", tag).digest
    assert any("git-remote-http" in command for command in web.seen)
    assert not [
        command for command in web.seen if any(secret in command for secret in (*SECRETS, USER + ":"))
    ]
    assert not any(secret in server.log for secret in SECRETS)


def test_a_token_without_a_user(web: GitServer, repository: Repository, start_server: StartServer) -> None:
    web.credentials = f"{TOKEN}:"
    repository.commit("1.0")
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git", TOKEN))
    assert server.client.pull("hello").digest
    assert not [command for command in web.seen if TOKEN in command]


def test_another_host_gets_no_password(
    web: GitServer, repository: Repository, start_server: StartServer, tmp_path: Path
) -> None:
    repository.commit("1.0")
    with git_server(tmp_path) as other:
        other.credentials = "nobody:knows"
        web.credentials = None
        web.redirect = other.url
        server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git"))
        assert server.client.manifest("hello").status == 503
    assert other.headers
    assert set(other.headers) == {""}


def test_the_password_reaches_the_archive_server_and_nothing_else(
    web: GitServer, repository: Repository, start_server: StartServer, tmp_path: Path
) -> None:
    commit = repository.commit("1.0")
    archive = tmp_path / "served" / f"{commit}.tar.gz"
    repository.git("archive", "--format=tar.gz", f"--prefix=set-{commit}/", f"--output={archive}", commit)
    server = start_server(
        NIXERY_PKGS_PATH=None,
        NIXERY_CHANNEL="main",
        NIXERY_CHANNEL_REPO=url_of(web, "set/.git"),
        NIXERY_CHANNEL_URL=url_of(web, f"{{rev}}.tar.gz?private_token={TOKEN}"),
    )
    assert server.client.pull("hello").digest
    assert any(TOKEN in request for request in web.requests)
    assert any("nix-instantiate" in command for command in web.seen)
    assert not [
        command for command in web.seen if any(secret in command for secret in (*SECRETS, USER + ":"))
    ]
    # An image names the source of its packages if the URL has no secrets.
    labels = json.loads(server.client.manifest("hello").body).get("annotations", {})
    assert "org.opencontainers.image.source" not in labels
    assert not any(secret in server.log for secret in SECRETS)


def test_a_pin_does_not_hide_a_wrong_password(
    web: GitServer, repository: Repository, start_server: StartServer
) -> None:
    repository.commit("1.0")
    first = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git"))
    digest = first.client.pull("hello").digest
    first.stop()
    second = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git", f"{USER}:wrong"))

    def ready() -> tuple[int, dict[str, Any]]:
        answer = second.client.get("/readyz")
        return answer.status, json.loads(answer.body)

    wait_until(lambda: "warnings" in ready()[1], "the source refuses the password")
    status, said = ready()
    # The storage has the pin and the commit: the server is ready, and answers as before.
    assert (status, said["status"], said["checks"]["source"]) == (200, "ready", "ok")
    assert said["warnings"]["source"].startswith("what is pinned is served, but no newer state can be found")
    assert second.client.digest("hello") == digest
    assert "ready, with warnings" in second.log
    # All these probes share one question: git asks once without credentials and once with them.
    asked = [header for header in web.headers if header]
    assert len(set(asked)) == 2
    assert len([header for header in asked if header != asked[0]]) <= 2


def test_a_new_password_fetches_nothing_again(
    web: GitServer, repository: Repository, start_server: StartServer
) -> None:
    repository.commit("1.0")
    first = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git"))
    digest = first.client.pull("hello").digest
    first.stop()
    web.requests.clear()
    web.credentials = f"{USER}:rotated"
    second = start_server(
        NIXERY_PKGS_PATH=None,
        NIXERY_PKGS_REPO=url_of(web, "set/.git", web.credentials),
        NIXERY_PIN_TTL="0",
    )
    assert second.client.digest("hello") == digest
    # Branches are listed; no objects are.
    listed = [request for request in web.requests if "info/refs" in request]
    assert listed
    assert web.requests.count("POST /set/.git/git-upload-pack") <= len(listed)
    assert len(list((second.storage / "sources").iterdir())) == 1


Break = Callable[[GitServer], None]


def refuse(web: GitServer) -> None:
    web.credentials = "somebody:else"


def redirect_away(web: GitServer) -> None:
    # A server that redirects each request, with its path, to an address without a server.
    web.redirect = f"http://{USER}:{PASSWORD}@127.0.0.1:1"


def redirect_to_closed_port(web: GitServer) -> None:
    web.credentials = None


@pytest.mark.parametrize("kind", ["git", "channel", "archive"])
@pytest.mark.parametrize("break_it", [refuse, redirect_away, redirect_to_closed_port])
@pytest.mark.parametrize("public", [None, "1"])
def test_errors_contain_no_secrets(
    web: GitServer,
    repository: Repository,
    start_server: StartServer,
    kind: str,
    break_it: Break,
    public: str | None,
) -> None:
    commit = repository.commit("1.0")
    break_it(web)
    path = "nosuch/.git" if break_it is redirect_to_closed_port else "set/.git"
    source: Mapping[str, Mapping[str, str]] = {
        "git": {"NIXERY_PKGS_REPO": url_of(web, path)},
        "channel": {"NIXERY_CHANNEL": "main", "NIXERY_CHANNEL_REPO": url_of(web, path)},
        "archive": {
            "NIXERY_CHANNEL": commit,
            "NIXERY_CHANNEL_URL": url_of(web, f"x/{{rev}}.tar.gz?private_token={TOKEN}&a=b"),
        },
    }
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PUBLIC_SOURCE=public, **source[kind])
    texts = all_output(server, commit)
    assert not [text for text in texts if any(secret in text for secret in SECRETS)]
    if public != "1":
        assert not [
            text for text in texts[:-1] if "127.0.0.1:1/" in text or "set/.git" in text or "{rev}" in text
        ]


def all_output(server: Server, commit: str) -> list[str]:
    """Return all responses with their headers, and the log."""
    answers = [
        *(server.client.manifest("hello", tag) for tag in ("latest", "main", "nosuch", commit, "f" * 40)),
        *(
            server.client.get(path)
            for path in ("/readyz", "/", "/api/packages", "/builds", "/v2/hello/tags/list")
        ),
    ]
    return [*(f"{answer.headers} {answer.body.decode()}" for answer in answers), server.log]


def test_an_outdated_pin_reveals_no_secrets(
    web: GitServer, repository: Repository, start_server: StartServer
) -> None:
    repository.commit("1.0")
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=url_of(web, "set/.git"), NIXERY_PIN_TTL="0")
    digest = server.client.digest("hello")
    web.redirect = f"http://{USER}:{PASSWORD}@127.0.0.1:1"
    response = server.client.manifest("hello")
    assert (response.status, response.headers["docker-content-digest"]) == (200, digest)
    assert response.headers["warning"].startswith('299 - "cannot read the package source;')
    assert not any(secret in server.log for secret in SECRETS)


@pytest.mark.parametrize(
    "settings",
    [
        {"NIXERY_PKGS_REPO": f"https://example.org/set.git?private_token={TOKEN}"},
        {"NIXERY_PKGS_REPO": f"https://robot:{TOKEN}/x@example.org/set.git"},
        {"NIXERY_PKGS_REPO": f"https://robot:{TOKEN}%0Ahost=x@example.org/set.git"},
        {"NIXERY_PKGS_REPO": f"ext::sh -c {TOKEN}"},
        {"NIXERY_PKGS_REPO": f"--upload-pack={TOKEN}"},
        {"NIXERY_CHANNEL": "main", "NIXERY_CHANNEL_REPO": f"https://example.org/set?token={TOKEN}"},
        {"NIXERY_CHANNEL": "main", "NIXERY_CHANNEL_URL": f"https://robot:{TOKEN}/x@example.org/{{rev}}"},
        {"NIXERY_FLAKE": f"git+https://robot:{TOKEN}@example.org/set"},
        {"NIXERY_FLAKE": f"git+ssh://robot:{TOKEN}@example.org/set"},
        {"NIXERY_FLAKE": f"https://example.org/set.tar.gz?private_token={TOKEN}"},
        {"NIXERY_FLAKE": f"github:a/b?token={TOKEN}"},
        {"NIXERY_FLAKE": "git+https://example.org/set?submodules=1"},
        {"NIXERY_FLAKE": f"--token={TOKEN}"},
    ],
)
def test_urls_whose_secrets_cannot_be_hidden_are_refused_at_the_start(
    settings: Mapping[str, str], tmp_path: Path
) -> None:
    completed = run_server(
        {
            "PORT": str(free_port()),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(tmp_path / "x"),
            **settings,
        },
        tmp_path,
    )
    assert completed.returncode == 2
    assert f"{list(settings)[-1]} is wrong: " in completed.stderr
    assert TOKEN not in completed.stderr + completed.stdout
