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
    """Of this run's builds; in the environment of its builders and nowhere else."""
    return f"nixery-test-{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, salt: str) -> Mapping[str, str]:
    """What every server of this run has in common."""
    directory = tmp_path_factory.mktemp("nix")
    return nix_environment(directory) | {"NIXERY_PKGS_PATH": str(salted_package_set(directory, salt))}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> Iterator[Server]:
    """The server for all tests that do not need one of their own."""
    with running_server(tmp_path_factory.mktemp("server"), settings) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="session")
def client(server: Server) -> RegistryClient:
    return server.client


@pytest.fixture(scope="session")
def pull(client: RegistryClient) -> Pull:
    """Pull from the common server; whatever is pulled is validated, and pulled once."""
    images: dict[str, PulledImage] = {}

    def pull_once(name: str) -> PulledImage:
        if name not in images:
            images[name] = validate(client.pull(name))
        return images[name]

    return pull_once


@pytest.fixture
def start_server(tmp_path: Path, settings: Mapping[str, str]) -> Iterator[StartServer]:
    """Start servers of a test's own, all on one storage unless they are told another."""
    with ExitStack() as stack:

        def start(**other_settings: str | None) -> Server:
            """With ``None``, a setting that all servers have in common is left out."""
            chosen = {**settings, "STORAGE_PATH": str(tmp_path / "storage"), **other_settings}
            given = {name: value for name, value in chosen.items() if value is not None}
            return stack.enter_context(running_server(tmp_path, given))

        yield start


@pytest.fixture
def spy(tmp_path: Path) -> NixSpy:
    """Counts the calls of Nix by servers that get its environment."""
    return NixSpy.install(tmp_path / "spy")
