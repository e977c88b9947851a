"""Open storages that earlier versions wrote: every digest in them is still served."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.server import Server

_STORAGES = Path(__file__).parent / "storages"

# Written in November 2026, before storages had a version: six gzip images, one with two tags, and a zstd index.
_NAMES = ("shell/hello", "tools", "images.web", "left/right/many", "arm64/hello", "hello")


@pytest.fixture(params=sorted(path.name for path in _STORAGES.glob("*.tar.gz")))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "earlier"
    with tarfile.open(_STORAGES / request.param) as archive:
        archive.extractall(directory, filter="data")
    # The archive has no times, and an image that was not pulled for a year may be deleted.
    for path in directory.rglob("*"):
        path.touch()
    return directory


@pytest.fixture
def server(start_server: StartServer, storage: Path) -> Server:
    return start_server(STORAGE_PATH=str(storage))


def _blobs(storage: Path) -> dict[str, bytes]:
    files = (path for path in (storage / "blobs").rglob("*") if path.is_file() and path.suffix != ".size")
    return {f"sha256:{path.name}": path.read_bytes() for path in files}


def test_every_blob_is_served_under_its_digest(storage: Path, server: Server) -> None:
    stored = _blobs(storage)
    assert len(stored) > 50
    for digest, content in stored.items():
        answer = server.client.get(f"/v2/hello/blobs/{digest}")
        assert answer.status == 200, answer.body
        assert f"sha256:{hashlib.sha256(answer.body).hexdigest()}" == digest
        assert answer.body == content


def test_every_manifest_and_index_is_served_with_all_its_parts(storage: Path, server: Server) -> None:
    stored = _blobs(storage)
    documents = {
        digest: json.loads(content)
        for digest, content in stored.items()
        if content.startswith(b'{"') and b'"mediaType"' in content
    }
    assert {"manifests" in document for document in documents.values()} == {True, False}
    for digest, document in documents.items():
        answer = server.client.manifest("hello", digest)
        assert answer.status == 200, answer.body
        assert answer.body == stored[digest]
        assert answer.headers["content-type"] == document["mediaType"]
        parts = document.get("manifests") or [document["config"], *document["layers"]]
        assert {part["digest"] for part in parts} <= stored.keys()


@pytest.mark.parametrize("name", _NAMES)
def test_tags_are_listed(name: str, server: Server) -> None:
    expected = ["latest", "v1"] if name == "hello" else ["latest"]
    assert server.client.get(f"/v2/{name}/tags/list").json()["tags"] == expected


def test_images_are_built_again_from_the_layers_that_are_there(storage: Path, server: Server) -> None:
    before = set(_blobs(storage))
    for name in _NAMES:
        answer = server.client.manifest(name)
        assert answer.status == 200, answer.body
        layers = {layer["digest"] for layer in answer.json()["layers"]}
        # Nothing is packed again: neither layers of store paths nor root file systems have changed.
        assert layers <= before
