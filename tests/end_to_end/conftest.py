"""A server and a few unpacked images that all tests share: unpacking takes longer than running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.container import Container, pull
from tests.support.nix import nix_environment
from tests.support.server import Server, running_server

# Debian's packages and some of the tests.
PACKAGE_SET = Path(__file__).parent / "packages"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("debian")
    settings = {"NIXERY_PKGS_PATH": str(PACKAGE_SET), "NIX_TIMEOUT": "300", **nix_environment(directory)}
    with running_server(directory, settings) as running:
        yield running


@pytest.fixture(scope="session")
def hello(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "hello", "latest", tmp_path_factory.mktemp("hello"))


@pytest.fixture(scope="session")
def tools(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "shell/git/curl/jq/python3/tzdata"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def special(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Packages that clash with each other or with the default files."""
    name = "bash/coreutils/dash/say/ownfiles/german/loud/quiet"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("special"))
