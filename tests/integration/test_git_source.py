"""Packages from a git repository."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient, Response
from tests.support.git_server import git_server
from tests.support.nix import NixSpy
from tests.support.pulled_image import PulledImage
from tests.support.repository import Repository
from tests.support.server import Server


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


class Servers:
    """Servers of a test, all on one storage, with packages from a repository."""

    def __init__(self, start: StartServer, repository: Repository) -> None:
        self._start = start
        self._repository = repository

    def __call__(self, **settings: str) -> Server:
        source: dict[str, str | None] = {"NIXERY_PKGS_REPO": self._repository.url, "NIXERY_PKGS_PATH": None}
        return self._start(**{**source, **settings})


@pytest.fixture
def start(start_server: StartServer, repository: Repository) -> Servers:
    return Servers(start_server, repository)


def version(image: PulledImage) -> str:
    return image.filesystem.read("share/version").decode().strip()


def manifest(client: RegistryClient, tag: str, name: str = "hello") -> Response:
    return client.manifest(name, tag)


def test_the_meaning_of_tags(start: Servers, repository: Repository) -> None:
    one = repository.commit("1.0")
    repository.git("tag", "light")
    repository.git("tag", "--annotate", "--message", "x", "v1")
    repository.git("branch", "release")
    repository.git("checkout", "--quiet", "-b", "next")
    two = repository.commit("2.0")
    # A branch and a tag of one name: the branch wins.
    repository.git("branch", "both", two)
    repository.git("tag", "both", one)
    repository.git("checkout", "--quiet", "main")
    client = start().client
    expected = {
        "latest": "1.0",
        "main": "1.0",
        "next": "2.0",
        "release": "1.0",
        "light": "1.0",
        "v1": "1.0",
        "both": "2.0",
        one: "1.0",
        two: "2.0",
    }
    images = {tag: client.pull("hello", tag) for tag in expected}
    assert {tag: version(image) for tag, image in images.items()} == expected
    # The same commit is the same image, under any tag.
    assert len({images[tag].digest for tag in ("latest", "main", "v1", one)}) == 1
    revisions = {tag: manifest(client, tag).headers["nixery-revision"] for tag in expected}
    assert revisions == {tag: one if expected[tag] == "1.0" else two for tag in expected}


def test_an_image_is_labelled_with_its_commit(start: Servers, repository: Repository) -> None:
    commit = repository.commit("1.0")
    server = start()
    image = server.client.pull("hello")
    assert image.config_document["created"] == "2023-11-14T22:13:20Z"
    assert commit in server.log
    # Paths of this machine are not revealed.
    assert repository.url not in image.manifest.decode()


@pytest.mark.parametrize("tag", ["nosuch", "a" * 40, "v1.0.0-rc_1", "latest2"])
def test_unknown_tags(start: Servers, repository: Repository, tag: str) -> None:
    repository.commit("1.0")
    response = manifest(start().client, tag)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert tag in response.error["message"]
    # The location of the repository is not revealed.
    assert str(repository.directory) not in response.error["message"]
    response = manifest(start(NIXERY_PUBLIC_SOURCE="1").client, tag)
    assert repository.url in response.error["message"] or len(tag) == 40


def test_a_branch_that_moves(start: Servers, repository: Repository) -> None:
    repository.commit("1.0")
    server, beside = start(NIXERY_PIN_TTL="8"), start(NIXERY_PIN_TTL="8")
    first = server.client.pull("hello")
    repository.commit("2.0")
    # Within the pin's time to live, all servers have one digest.
    assert server.client.digest("hello") == beside.client.digest("hello") == first.digest
    end = time.monotonic() + 30
    while (after := server.client.pull("hello")).digest == first.digest:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert (version(first), version(after)) == ("1.0", "2.0")
    assert beside.client.digest("hello") == after.digest


def test_repeated_pulls_run_nothing(start: Servers, repository: Repository, spy: NixSpy) -> None:
    commit = repository.commit("1.0")
    server = start(**spy.environment())
    digests = {tag: server.client.digest("hello", tag) for tag in ("latest", commit)}
    spy.forget()
    for _ in range(100):
        assert {tag: server.client.digest("hello", tag) for tag in digests} == digests
    assert spy.calls == []
    # The pin of a commit never expires; the server does not contact the source again.
    assert server.stop() == 0
    repository.directory.rename(repository.directory.with_name("gone"))
    again = start(**spy.environment())
    spy.forget()
    assert again.client.digest("hello", commit) == digests[commit]
    assert spy.calls == []


def test_only_a_new_name_of_a_known_commit_is_evaluated(
    start: Servers, repository: Repository, spy: NixSpy
) -> None:
    repository.commit("1.0")
    server = start(**spy.environment())
    server.client.digest("hello")
    spy.forget()
    server.client.digest("hello/other")
    (call,) = spy.calls_of("nix-instantiate", "request")
    assert '"other"' in call
    assert '"hello"' not in call


def test_a_commit_that_was_forced_away(start: Servers, repository: Repository) -> None:
    repository.commit("1.0")
    repository.git("branch", "topic")
    repository.git("checkout", "--quiet", "topic")
    gone = repository.commit("2.0")
    repository.git("checkout", "--quiet", "main")
    server = start()
    assert version(server.client.pull("hello", gone)) == "2.0"
    repository.git("update-ref", "refs/heads/topic", "main")
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "--quiet", "--prune=now")
    # Clients with the pinned commit still get it, with all its other packages.
    assert version(server.client.pull("hello", gone)) == "2.0"
    assert version(server.client.pull("other", gone)) == "2.0"
    assert server.stop() == 0
    assert version(start().client.pull("hello/other", gone)) == "2.0"


def test_two_repositories_with_the_same_packages(start_server: StartServer, tmp_path: Path) -> None:
    one, two = Repository(tmp_path / "one"), Repository(tmp_path / "two")
    one.commit("1.0")
    two.commit("2.0")
    images = [
        start_server(NIXERY_PKGS_REPO=repository.url, NIXERY_PKGS_PATH=None).client.pull("hello")
        for repository in (one, two, one)
    ]
    assert [version(image) for image in images] == ["1.0", "2.0", "1.0"]


def test_a_source_that_cannot_be_reached(start: Servers, repository: Repository) -> None:
    repository.commit("1.0")
    elsewhere = repository.directory.with_name("elsewhere")
    server = start(NIXERY_PIN_TTL="1")
    digest = server.client.digest("hello")
    repository.directory.rename(elsewhere)
    time.sleep(1.2)
    # The server uses the last pin and sends a warning to the client.
    response = manifest(server.client, "latest")
    assert (response.status, response.headers["docker-content-digest"]) == (200, digest)
    assert response.headers["warning"].startswith('299 - "cannot read ')
    # A tag that was never pinned is an error.
    response = manifest(server.client, "main")
    assert (response.status, response.error["code"]) == (503, "UNKNOWN")
    assert int(response.headers["retry-after"]) > 0
    assert "cannot read" in response.error["message"]
    elsewhere.rename(repository.directory)
    assert manifest(server.client, "main").status == 200


def test_an_evaluation_is_isolated_from_the_machine(start: Servers, repository: Repository) -> None:
    repository.commit("1.0")
    server = start(SECRET="hidden")  # noqa: S106 -- made up
    image = server.client.pull("environment")
    assert "environment-x" in {path.split("-", 1)[1] for path in image.filesystem.store_paths}
    response = manifest(server.client, "latest", "outside")
    assert response.status == 404
    assert "forbidden" in response.error["message"]
    response = manifest(server.client, "latest", "built")
    assert response.status == 404
    assert "allow-import-from-derivation" in response.error["message"]


def test_an_evaluation_cannot_fetch_local_files(start: Servers, repository: Repository) -> None:
    repository.write(
        "1.0", outside='"${builtins.fetchTree { type = "path"; path = "/etc/ssl"; }}/openssl.cnf"'
    )
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "reads")
    # Nix's configuration may enable flakes, and with them functions that fetch anything.
    response = manifest(
        start(NIX_CONFIG="experimental-features = nix-command flakes").client, "latest", "outside"
    )
    assert response.status == 404
    # A fetched file would be parsed, and is not a Nix expression.
    assert "syntax error" not in response.error["message"]


@pytest.mark.security
@pytest.mark.parametrize(("variable", "prefix"), [("NIX_PATH", ""), ("NIX_CONFIG", "nix-path = ")])
def test_an_evaluation_has_no_other_search_path(
    start: Servers, repository: Repository, tmp_path: Path, variable: str, prefix: str
) -> None:
    (tmp_path / "elsewhere.nix").write_text("1")
    repository.write("1.0", outside="<elsewhere>")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "searches")
    server = start(**{variable: f"{prefix}elsewhere={tmp_path}/elsewhere.nix"})
    response = manifest(server.client, "latest", "outside")
    assert response.status == 404
    assert "not found in the Nix search path" in response.error["message"]


@pytest.mark.security
def test_an_evaluation_fetches_no_submodules_of_this_machine(
    start: Servers, repository: Repository, tmp_path: Path
) -> None:
    private = Repository(tmp_path / "private")
    private.commit("1.0")
    configuration = tmp_path / "gitconfig"
    # As operators set it for submodules of their own, and as older versions of git have it by default.
    configuration.write_text('[protocol "file"]\n\tallow = always\n')
    fetched = Repository(tmp_path / "served" / "fetched")
    fetched.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(private.directory), "sub"
    )
    revision = fetched.commit("1.0")
    with git_server(tmp_path / "served") as web:
        url = f"{web.url}/fetched/.git"
        repository.write(
            "1.0",
            outside=f'''"${{builtins.fetchGit {{
              url = "{url}"; ref = "main"; rev = "{revision}"; submodules = true;
            }}}}/sub/default.nix"''',
        )
        repository.git("add", "--all")
        repository.git("commit", "--quiet", "--message", "fetches")
        server = start(GIT_CONFIG_GLOBAL=str(configuration), XDG_CACHE_HOME=str(tmp_path / "cache"))
        response = manifest(server.client, "latest", "outside")
    assert response.status == 404
    assert "program 'git' failed" in response.error["message"]


@pytest.mark.security
def test_an_evaluation_runs_no_program(start: Servers, repository: Repository, tmp_path: Path) -> None:
    repository.write("1.0", outside=f'(builtins.exec [ "/usr/bin/touch" "{tmp_path}/ran" ])')
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "runs")
    server = start(NIX_CONFIG="allow-unsafe-native-code-during-evaluation = true")
    assert manifest(server.client, "latest", "outside").status == 404
    assert not (tmp_path / "ran").exists()


def test_import_from_derivation_if_it_is_allowed(start: Servers, repository: Repository) -> None:
    repository.commit("1.0")
    assert version(start(NIXERY_ALLOW_IFD="true").client.pull("built")) == "1.0"


def test_many_new_commits_at_once(start: Servers, repository: Repository) -> None:
    commits = [repository.commit(f"{number}.0") for number in range(6)]
    client = start().client
    images = [client.pull("hello", commit) for commit in commits]
    assert [version(image) for image in images] == [f"{number}.0" for number in range(6)]


def test_a_commit_is_unpacked_in_its_place(start: Servers, repository: Repository, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    repository.commit("1.0")
    file = repository.git("rev-parse", "HEAD:default.nix")
    (repository.directory / "link").symlink_to(outside)
    target = repository.git("hash-object", "-w", "--stdin", content=str(outside).encode())

    def tree(*entries: tuple[str, str, str]) -> str:
        # git itself creates no such trees.
        content = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(object_name)
            for mode, name, object_name in entries
        )
        return repository.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", content=content)

    inner = tree(("100644", "owned", file))
    hostile = {
        "twice": tree(("100644", "default.nix", file), ("120000", "link", target), ("40000", "link", inner)),
        "above": tree(("40000", "..", inner), ("100644", "default.nix", file)),
        "path": tree(("100644", "default.nix", file), ("100644", "../../owned", file)),
        "absolute": tree(("100644", f"{outside}/owned", file), ("100644", "default.nix", file)),
    }
    for name, object_name in hostile.items():
        commit = repository.git("commit-tree", "-m", name, object_name)
        repository.git("update-ref", f"refs/heads/{name}", commit)
    client = start().client
    statuses = {name: manifest(client, name).status for name in hostile}
    assert set(statuses.values()) <= {200, 404, 500, 503}
    assert list(outside.iterdir()) == []
    assert list(tmp_path.rglob("owned")) == []
    assert manifest(client, "main").status == 200


def test_a_directory_runs_no_program_of_its_repository(
    start_server: StartServer, repository: Repository, tmp_path: Path
) -> None:
    commit = repository.commit("1.0")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$1\ncat\n")
    program.chmod(0o755)
    (repository.directory / ".git/info/attributes").write_text("* filter=a=b diff=x\n")
    for number, key in enumerate(
        [
            "core.fsmonitor",
            "filter.a=b.clean",
            "filter.a=b.process",
            "gpg.program",
            "diff.external",
            "diff.x.textconv",
            "diff.x.command",
            "core.sshCommand",
            "core.pager",
            "pager.log",
            "core.alternateRefsCommand",
        ]
    ):
        # "git config" takes no key with "=" apart from its value.
        section, _, rest = key.partition(".")
        name, _, last = rest.rpartition(".")
        heading = f'[{section} "{name}"]' if name else f"[{section}]"
        with (repository.directory / ".git/config").open("a") as config:
            config.write(f'{heading}\n\t{last} = "{program} {number}"\n')
    with (repository.directory / ".git/config").open("a") as config:
        config.write(f"[log]\n\tshowSignature = true\n[core]\n\thooksPath = {tmp_path}\n")
    (tmp_path / "post-index-change").symlink_to(program)
    # The server has to read its content.
    (repository.directory / "default.nix").touch()
    response = manifest(start_server(NIXERY_PKGS_PATH=str(repository.directory)).client, "latest")
    assert response.status == 200
    assert response.headers["nixery-revision"].startswith(commit)
    assert [path.name for path in tmp_path.glob("ran*")] == []


@pytest.mark.security
def test_a_commit_with_a_date_out_of_range(start: Servers, repository: Repository) -> None:
    """The author of a commit object chooses its date."""
    tree = repository.git("rev-parse", f"{repository.commit('1.0')}^{{tree}}")
    person = "a <a@example.org> 99999999999999 +0000"
    commit = f"tree {tree}\nauthor {person}\ncommitter {person}\n\nx\n".encode()
    found = repository.git("hash-object", "-t", "commit", "-w", "--stdin", content=commit)
    repository.git("update-ref", "refs/heads/far", found)
    server = start()
    image = server.client.pull("hello", "far")
    assert version(image) == "1.0"
    assert "Traceback" not in server.log


@pytest.mark.security
def test_a_commit_whose_directories_are_a_thousand_levels_deep(
    start: Servers, repository: Repository
) -> None:
    tree = repository.git("rev-parse", f"{repository.commit('1.0')}^{{tree}}")
    deep = tree
    for _ in range(1200):
        deep = repository.git("mktree", content=f"040000 tree {deep}\td\n".encode())
    entries = repository.git("ls-tree", tree) + f"\n040000 tree {deep}\td\n"
    commit = repository.git("commit-tree", "-m", "x", repository.git("mktree", content=entries.encode()))
    repository.git("update-ref", "refs/heads/deep", commit)
    server = start()
    assert version(server.client.pull("hello", "deep")) == "1.0"
    assert "Traceback" not in server.log
    assert not any((server.storage / "temporary").glob("*/tmp*"))
    assert server.stop() == 0
    assert version(start().client.pull("hello", "main")) == "1.0"
