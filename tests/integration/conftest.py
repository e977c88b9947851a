"""Servers for the tests with real Nix."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.client import RegistryClient
from tests.support.nix import NixSpy, nix_environment, salted_package_set
from tests.support.pulled_image import PulledImage
from tests.support.server import Server, running_server
from tests.validator.image_validator import validate

Pull = Callable[..., PulledImage]
StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def salt() -> str:
    """A text that only the builders of this run have in their environment."""
    return f"nixery-test-{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, salt: str) -> Mapping[str, str]:
    """The settings that all servers of this run share."""
    directory = tmp_path_factory.mktemp("nix")
    return nix_environment(directory) | {"NIXERY_PKGS_PATH": str(salted_package_set(directory, salt))}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> Iterator[Server]:
    """The server shared by all tests that do not need their own."""
    with running_server(tmp_path_factory.mktemp("server"), settings) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="session")
def client(server: Server) -> RegistryClient:
    return server.client


@pytest.fixture(scope="session")
def pull(client: RegistryClient) -> Pull:
    """Pull from the shared server, once for each name, and validate the image."""
    images: dict[str, PulledImage] = {}

    def pull_once(name: str) -> PulledImage:
        if name not in images:
            images[name] = validate(client.pull(name))
        return images[name]

    return pull_once


@pytest.fixture
def start_server(tmp_path: Path, settings: Mapping[str, str]) -> Iterator[StartServer]:
    """Start servers for one test, all on one storage by default."""
    with ExitStack() as stack:

        def start(**other_settings: str | None) -> Server:
            """Start a server; ``None`` removes a shared setting."""
            chosen = {**settings, "STORAGE_PATH": str(tmp_path / "storage"), **other_settings}
            given = {name: value for name, value in chosen.items() if value is not None}
            return stack.enter_context(running_server(tmp_path, given))

        yield start


@pytest.fixture
def spy(tmp_path: Path) -> NixSpy:
    """Records the calls of Nix by servers with its environment."""
    return NixSpy.install(tmp_path / "spy")
