"""The registry under test: nixery, or another registry with an image (``--registry``, ``--image``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.specification import Sentence
from tests.conformance.subject import TAGS, Subject
from tests.support.client import RegistryClient
from tests.support.nix import nix_environment
from tests.support.repository import Repository
from tests.support.server import running_server


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
    with running_server(directory, settings) as server:
        yield Subject(server.client, name, tag)
