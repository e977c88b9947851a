"""The registry under test: nixery, or another registry with an image (``--registry``, ``--image``)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest

from tests.conformance.specification import Sentence
from tests.conformance.subject import TAGS, Subject
from tests.support.client import RegistryClient
from tests.support.nix import nix_environment
from tests.support.repository import Repository
from tests.support.server import running_server

_USER, _PASSWORD = "alice", "correct horse"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect nixery's additional promises for other registries; add the sentences of each test to the report."""
    if config.getoption("--registry") is not None:
        promises = [item for item in items if item.get_closest_marker("promise")]
        items[:] = [item for item in items if item not in promises]
        config.hook.pytest_deselected(items=promises)
    for item in items:
        for marker in item.iter_markers("specification"):
            sentences: tuple[Sentence, ...] = marker.args
            item.user_properties += [("sentence", str(sentence)) for sentence in sentences]


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    name, _, tag = request.config.getoption("--image").rpartition(":")
    address: str | None = request.config.getoption("--registry")
    if address is not None:
        host, _, port = address.rpartition(":")
        yield Subject(RegistryClient(host, int(port)), name, tag)
        return
    directory = tmp_path_factory.mktemp("conformance")
    # A source with versions: without versions, one tag alone is listed.
    repository = Repository(directory / "repository")
    repository.commit("1.0")
    for version in TAGS:
        repository.git("tag", version)
    settings = {"NIXERY_PKGS_REPO": repository.url, **nix_environment(directory)}
    access: str = request.config.getoption("--access")
    if access != "none":
        settings["NIXERY_ACCESS"] = str(_access_file(directory, access))
    authorization = None
    if access == "user":
        authorization = f"Basic {base64.b64encode(f'{_USER}:{_PASSWORD}'.encode()).decode()}"
    with running_server(directory, settings) as server:
        yield Subject(replace(server.client, authorization=authorization), name, tag)


def _access_file(directory: Path, access: str) -> Path:
    """Write rules that allow everyone or one user everything."""
    who = "everyone" if access == "everyone" else f"user:{_USER}"
    hashed = bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text(f"{_USER}:{hashed}\n")
    file = directory / "access.toml"
    file.write_text(f'htpasswd = "htpasswd"\n[[rule]]\nwho = ["{who}"]\nmay = ["pull", "build"]\n')
    return file
