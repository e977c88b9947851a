"""Clients do not choose the code: the server accepts only commits that a branch or a tag of the source reaches."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.git_server import GitServer, git_server
from tests.support.repository import Repository
from tests.support.server import Server

pytestmark = pytest.mark.security

FLAKE = """\
{ outputs = { self }: { packages.x86_64-linux.hello = (import ./default.nix { system = "x86_64-linux"; }).hello; }; }
"""


class Published(Repository):
    """A repository on a forge, which serves any commit, including those of forks."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for setting in ("allowAnySHA1InWant", "allowFilter"):
            self.git("config", f"uploadpack.{setting}", "true")
        (directory / "flake.nix").write_text(FLAKE)

    def write(self, version: str, outside: str = "/etc/hostname") -> None:
        super().write(version, outside)
        path = self.directory / "default.nix"
        path.write_text(path.read_text().replace("builtins.currentSystem", '"x86_64-linux"'))


@dataclass
class Forge:
    """Commits of all kinds, and servers that take packages from there as one kind of source."""

    kind: str
    web: GitServer
    directory: Path
    repository: Published
    start: StartServer

    def release(self, version: str) -> str:
        commit = self.repository.commit(version)
        archive = self.directory / f"{commit}.tar.gz"
        self.repository.git(
            "archive", "--format=tar.gz", f"--prefix=set-{commit}/", f"--output={archive}", commit
        )
        return commit

    def fork(self, version: str) -> str:
        """Commit a version to a fork, whose commits a forge keeps in the same repository."""
        self.repository.git("checkout", "--quiet", "--detach")
        commit = self.release(version)
        self.repository.git("update-ref", f"refs/pull/{version}/head", commit)
        self.repository.git("checkout", "--quiet", "main")
        return commit

    def server(self, **settings: str) -> Server:
        url = f"{self.web.url}/set/.git"
        source = {
            "git": {"NIXERY_PKGS_REPO": url},
            "flake": {"NIXERY_FLAKE": f"git+{url}?ref=main"},
            "channel": {
                "NIXERY_CHANNEL": "main",
                "NIXERY_CHANNEL_REPO": url,
                "NIXERY_CHANNEL_URL": f"{self.web.url}/{{rev}}.tar.gz",
            },
        }[self.kind]
        return self.start(NIXERY_PKGS_PATH=None, **source, **settings)


@pytest.fixture(params=["git", "channel", "flake"])
def forge(request: pytest.FixtureRequest, tmp_path: Path, start_server: StartServer) -> Iterator[Forge]:
    directory = tmp_path / "served"
    with git_server(directory) as web:
        yield Forge(request.param, web, directory, Published(directory / "set"), start_server)


def version(server: Server, tag: str) -> str:
    return server.client.pull("hello", tag).filesystem.read("share/version").decode().strip()


def refusal(server: Server, tag: str) -> str:
    response = server.client.manifest("hello", tag)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN"), response
    assert tag in response.error["message"]
    return str(response.error["message"])


def store_has(tree: Path) -> bool:
    """Whether a tree was copied into the Nix store, as any of the sources would copy it."""
    expression = f'"${{builtins.path {{ name = "source"; path = {tree}; }}}}"'
    path = subprocess.run(
        ["nix-instantiate", "--eval", "--expr", expression],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()
    return Path(path.strip('"')).exists()


def test_the_commit_of_a_fork(forge: Forge, tmp_path: Path) -> None:
    first = forge.release("1.0")
    last = forge.release("2.0")
    evil = forge.fork(f"6.{secrets.token_hex(8)}")  # a tree that no other run has put into the store
    server = forge.server()
    assert (version(server, first), version(server, last)) == ("1.0", "2.0")
    assert "not an ancestor of a branch or tag of this package source (NIXERY_COMMITS=reachable)" in refusal(
        server, evil
    )
    tree = tmp_path / "tree"
    forge.repository.git("worktree", "add", "--quiet", "--detach", str(tree), evil)
    (tree / ".git").unlink()
    assert not store_has(tree)
    assert not any(evil in request for request in forge.web.requests)
    # Nor by an abbreviated id, which a forge would also accept.
    for digits in (7, 12, 39):
        refusal(server, evil[:digits])


@pytest.mark.parametrize("way", ["by another name", "another repository"])
def test_a_planted_pin(forge: Forge, way: str) -> None:
    """An attacker who can write to the storage, with a stolen bucket credential for example, does not choose the code either."""
    forge.release("1.0")
    evil = forge.fork("6.0")
    other = Published(forge.directory / "other" / "set")
    foreign = other.commit("6.0")
    other.git(
        "archive",
        "--format=tar.gz",
        "--prefix=set/",
        f"--output={forge.directory}/other/{foreign}.tar.gz",
        foreign,
    )
    identity = {
        ("git", "by another name"): "refs/pull/6.0/head",
        ("git", "another repository"): f"{foreign}^{{commit}}",
        ("channel", "by another name"): f"x/../{evil}",
        ("channel", "another repository"): f"other/{foreign}",
        ("flake", "by another name"): f"git+{forge.web.url}/set/.git?ref=refs/pull/6.0/head",
        ("flake", "another repository"): f"git+file://{other.directory}?ref=main&rev={foreign}",
    }[forge.kind, way]
    server = forge.server()
    assert version(server, "latest") == "1.0"
    assert server.stop() == 0
    for path in (server.storage / "records" / "pins").glob("*/*"):
        record = json.loads(path.read_bytes())
        record["current"] |= {"identity": identity, "revision": "x"}
        path.chmod(0o600)  # records of commits are written once, and read-only
        path.write_text(json.dumps(record))
    before = len(forge.web.requests)
    server = forge.server()
    assert version(server, "latest") == "1.0"
    assert not any("pull" in request or "other" in request for request in forge.web.requests[before:])
    assert "pin in the storage is not of this source" in server.log


def test_a_commit_pinned_through_a_branch(forge: Forge) -> None:
    forge.release("1.0")
    reset_commit = forge.release("2.0")
    server = forge.server()
    assert version(server, "latest") == "2.0"
    forge.repository.git("reset", "--hard", "--quiet", "HEAD~1")
    forge.release("3.0")
    # Another server on the same records, without the commits that the first one fetched.
    assert server.stop() == 0
    assert version(forge.server(), reset_commit) == "2.0"


def test_the_rule_can_be_relaxed_and_tightened(forge: Forge) -> None:
    forge.release("1.0")
    forge.repository.git("checkout", "--quiet", "-b", "topic")
    topic = forge.release("1.1")
    forge.release("1.2")
    forge.repository.git("checkout", "--quiet", "main")
    forge.release("2.0")
    fork = forge.fork("6.0")
    anything = forge.server(NIXERY_COMMITS="any")
    assert version(anything, topic) == "1.1"
    if forge.kind != "flake":
        # This version of Nix fetches a flake's commit by the branch or the tag that leads to it, not by its
        # id.
        assert version(anything, fork) == "6.0"
    # Another rule does not accept the commits of the first one.
    assert anything.stop() == 0
    narrow = forge.server(NIXERY_COMMITS="main,release-*")
    assert "NIXERY_COMMITS=main,release-*" in refusal(narrow, topic)
    refusal(narrow, fork)
    assert "NIXERY_COMMITS=none" in refusal(forge.server(NIXERY_COMMITS="none"), topic)
    wide = forge.server(NIXERY_COMMITS="topic")
    assert version(wide, topic) == "1.1"


def test_many_commits_that_do_not_exist(forge: Forge) -> None:
    forge.release("1.0")
    last = forge.release("2.0")
    server = forge.server()
    assert version(server, last) == "2.0"
    refusal(server, "f" * 40)
    asked = len(forge.web.requests)
    for number in range(1, 31):
        refusal(server, f"{number:040x}")
    # The server listed the branches a few times and fetched nothing.
    new = forge.web.requests[asked:]
    assert not [request for request in new if request.startswith("GET") and "info/refs" not in request]
    assert len(new) < 30
    assert [record for record in (server.storage / "records").rglob("*") if record.is_file()]
