"""A server with access rules, and credentials for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from nixery.access.api_tokens import ApiTokens
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore
from tests.acceptance.clients.logins import Credentials
from tests.support.client import RegistryClient
from tests.support.nix import nix_environment
from tests.support.repository import Repository
from tests.support.server import HOST, Server, running_server

# Everyone may have `other`, and `environment` at a single tag; only the team `hello`.
_RULES = """\
htpasswd = "htpasswd"

[groups]
team = {team}

[[rule]]
who = ["group:team"]
may = ["pull", "build"]

[[rule]]
who = ["everyone"]
packages = ["other"]
may = ["pull", "build"]

[[rule]]
who = ["everyone"]
packages = ["environment"]
tags = ["1.0"]
may = ["pull"]
"""

# Of every user.
PASSWORD = "correct horse"  # noqa: S105 -- of the tests

# A member of the team, and a user who is none.
USER, VISITOR = "alice", "visitor"

TAGS = ("1.0", "1.1", "2.0")


@dataclass(frozen=True)
class Registry:
    """A server with access rules, and API tokens."""

    server: Server
    token: str
    expired: str
    foreign: str

    @property
    def host(self) -> str:
        return f"{HOST}:{self.server.port}"

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """The requests so far: method, path and status."""
        found = (json.loads(line) for line in self.server.log.splitlines() if line.startswith("{"))
        return [
            (line["method"], line["path"], line["status"]) for line in found if line["event"] == "request"
        ]


def _api_token(storage: Path, temporary: Path, *, ago: float = 0) -> str:
    """Create a token that is valid for an hour, some seconds ago."""
    tokens = ApiTokens(RecordStore(FilesystemDriver(storage, temporary)), clock=lambda: time.time() - ago)
    text, _ = asyncio.run(tokens.create("robot", groups=["team"], expires_in=3600))
    return text


@contextmanager
def running_registry(directory: Path, team: Sequence[str]) -> Iterator[Registry]:
    """Run a server with the images ``hello``, ``other`` and ``environment``, and a user for each member of the team."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text("".join(f"{user}:{hashed}\n" for user in (*team, USER, VISITOR)))
    file = directory / "access.toml"
    file.write_text(_RULES.format(team=json.dumps([*team, USER])))
    repository = Repository(directory / "repository")
    repository.commit("1.0")
    for tag in TAGS:
        repository.git("tag", tag)
    settings = {
        "NIXERY_PKGS_REPO": repository.url,
        "NIXERY_ACCESS": str(file),
        "NIXERY_LOG_LEVEL": "debug",
        "NIXERY_LOG_FORMAT": "json",
        **nix_environment(directory),
    }
    temporary, other = directory / "temporary", directory / "other"
    temporary.mkdir()
    other.mkdir()
    with running_server(directory, settings) as server:
        alice = RegistryClient(HOST, server.port, authorization=Credentials(USER, PASSWORD).authorization)
        for name in ("hello", "other", "environment"):
            for tag in ("latest", *TAGS):
                assert alice.manifest(name, tag).status == 200
        yield Registry(
            server,
            token=_api_token(server.storage, temporary),
            expired=_api_token(server.storage, temporary, ago=7200),
            foreign=_api_token(other, temporary),
        )
