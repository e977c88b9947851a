"""Open storages that earlier versions wrote: every digest in them is still served."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import PACKAGE_SETS, wait_until
from tests.support.server import Server, clean_environment, free_port

_STORAGES = Path(__file__).parent / "storages"

# Written in November 2026, before storages had a version: six gzip images, one with two tags, and a zstd
# index.
_NAMES = ("shell/hello", "tools", "images.web", "left/right/many", "arm64/hello", "hello")


@pytest.fixture(params=sorted(path.name for path in _STORAGES.glob("*.tar.gz")))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "earlier"
    with tarfile.open(_STORAGES / request.param) as archive:
        archive.extractall(directory, filter="data")
    # The archive has no time stamps, and the server may delete an image that was not pulled for a year.
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


def test_images_are_rebuilt_from_stored_layers(storage: Path, server: Server) -> None:
    before = set(_blobs(storage))
    for name in _NAMES:
        answer = server.client.manifest(name)
        assert answer.status == 200, answer.body
        *layers, root = [layer["digest"] for layer in answer.json()["layers"]]
        # Layers of store paths are not packed again; root file systems have changed since.
        assert before >= set(layers)
        assert root not in before


def records_of(storage: Path, kind: str) -> list[Path]:
    return [path for path in (storage / "records" / kind).rglob("*") if path.is_file()]


def migrated(storage: Path) -> bool:
    return (storage / "version").exists()


def test_a_storage_is_migrated_in_place_while_two_servers_serve_it(
    storage: Path, start_server: StartServer
) -> None:
    old = len(records_of(storage, "tags"))
    before = _blobs(storage)
    servers = [start_server(STORAGE_PATH=str(storage)) for _ in range(2)]
    assert servers[0].client.get("/v2/hello/tags/list").json()["tags"] == ["latest", "v1"]
    wait_until(lambda: migrated(storage), "the storage was migrated")
    assert (storage / "version").read_text() == "2\n"
    assert records_of(storage, "tags") == []
    assert len(records_of(storage, "tags-in-order")) == old
    for server in servers:
        assert server.client.get("/v2/hello/tags/list").json()["tags"] == ["latest", "v1"]
        names = server.client.get("/v2/_catalog").json()["repositories"]
        assert len(names) == old - 1
        first = server.client.get("/v2/_catalog?n=1").json()["repositories"]
        assert first == names[:1]
    assert _blobs(storage) == before


def test_commands_work_on_a_storage_that_is_not_migrated_yet(storage: Path, tmp_path: Path) -> None:
    for command in (["scrub", "--json"], ["storage", "copy", f"file://{storage}", f"file://{tmp_path}/copy"]):
        ended = run_command(storage, *command)
        assert ended.returncode == 0, ended
    assert _blobs(tmp_path / "copy") == _blobs(storage)
    assert not migrated(storage)


def test_a_storage_of_a_later_version_is_refused_by_server_and_commands(
    storage: Path, tmp_path: Path
) -> None:
    (storage / "version").write_text("3\n")
    before = _blobs(storage)
    for command in (
        ["serve"],
        ["gc"],
        ["scrub"],
        ["storage", "copy", f"file://{storage}", f"file://{tmp_path}/copy"],
    ):
        ended = run_command(storage, *command)
        assert ended.returncode != 0, ended
        assert "in version 3, and this one supports versions up to 2 (upgrade this nixery" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert _blobs(storage) == before


def run_command(storage: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(storage),
        "PORT": str(free_port()),
    }
    environment["NIXERY_PKGS_PATH"] = str(PACKAGE_SETS)
    return subprocess.run(
        [sys.executable, "-m", "nixery", *arguments],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
