"""The targets: the application in this process, and a whole server behind a socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fuzz.application import ApplicationUnderTest, application_under_test
from tests.support.nix import PACKAGE_SETS, NixSpy, nix_environment
from tests.support.raw_http import exchange
from tests.support.second_store import hash_of, registered_paths
from tests.support.server import HOST, Server, running_server


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApplicationUnderTest]:
    with application_under_test(tmp_path_factory.mktemp("application")) as application:
        yield application


@dataclass(frozen=True)
class Target:
    """A server with real Nix behind a spy, and its stored content.

    Attributes:
        digest: of the manifest of ``hello``.
        blob: digest of one of its layers.
        content: of that layer.
        hash: by which a binary cache knows one of its store paths.
        nar_hash: SHA-256 of the NAR of that path.
    """

    server: Server
    spy: NixSpy
    digest: str
    blob: str
    content: bytes
    hash: str
    nar_hash: str

    def exchange(self, sent: bytes) -> bytes:
        return exchange((HOST, self.server.port), sent)

    def check_health(self) -> None:
        """Check that it still responds and has logged no internal error."""
        assert self.server.client.get("/v2/").status == 200
        for sign in ("Traceback", "request failed", "panicked", '"level": "error"'):
            assert sign not in self.server.log, self.server.log


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("fuzz")
    spy = NixSpy.install(directory / "spy")
    settings = {"NIXERY_PKGS_PATH": str(PACKAGE_SETS), **nix_environment(directory), **spy.environment()}
    settings |= {"NIXERY_SERVE_CACHE": "1"}
    with running_server(directory / "server", settings) as server:
        digest = server.client.digest("hello")
        blob = server.client.manifest("hello").json()["layers"][-1]["digest"]
        content = server.client.blob("hello", blob).body
        path, registered = next(iter(registered_paths(server.storage).items()))
        yield Target(server, spy, digest, blob, content, hash_of(path), registered["nar_hash"])
        assert server.stop() == 0
