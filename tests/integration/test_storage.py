from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import DOCKER_MANIFEST
from tests.support.pulled_image import PulledImage
from tests.support.server import Server
from tests.validator.image_validator import validate

NAME = "shell/hello/diamond"

# Seconds after which a server checks again whether the blobs of an image exist.
LOOKUP_TTL = 1.1


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_layout(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull(NAME)
    docker = server.client.get(f"/v2/{NAME}/manifests/latest", {"Accept": DOCKER_MANIFEST})
    digests = [
        image.digest,
        docker.headers["docker-content-digest"],
        image.manifest_document["config"]["digest"],
        *image.layer_digests,
    ]
    blobs = [path for path in files(server.storage / "blobs") if path.suffix != ".size"]
    assert blobs == sorted(server.blob_path(digest) for digest in digests)
    for path in blobs:
        assert path.with_name(f"{path.name}.size").read_text() == str(path.stat().st_size)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.parent.name == path.name[:2]
        assert not path.stat().st_mode & 0o222
    assert files(server.storage / "temporary") == []
    assert {path.name for path in server.storage.iterdir()} == {
        "blobs",
        "records",
        "temporary",
        "version",
        "gc-roots",
        "locks",
    }


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def lengthen(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"more")


def test_damaged_blobs_are_rebuilt(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull(NAME)
    for damage in (cut, empty, lengthen, Path.unlink):
        for path in files(server.storage / "blobs"):
            damage(path)
        time.sleep(LOOKUP_TTL)
        assert validate(server.client.pull(NAME)) == image, damage


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_damaged_blobs_are_rebuilt_after_a_restart(
    start_server: StartServer, damage: Callable[[Path], None]
) -> None:
    server = start_server()
    image = server.client.pull(NAME)
    assert server.stop() == 0
    for path in files(server.storage / "blobs"):
        damage(path)
    assert validate(start_server().client.pull(NAME)) == image


def test_damaged_records_are_rebuilt(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull(NAME)
    assert files(server.storage / "records")
    for content in (b"", b"{", b"null", b'{"digest": "sha256:0"}', b"\xff\xfe"):
        for path in files(server.storage / "records"):
            path.unlink()
            path.write_bytes(content)
        assert server.stop() == 0
        server = start_server()
        assert validate(server.client.pull(NAME)) == image, content
        assert server.client.get(f"/v2/{NAME}/tags/list").json()["tags"] == ["latest"]


def identities(server: Server) -> dict[str, tuple[int, int]]:
    found = {path.name: path.stat() for path in files(server.storage / "blobs")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_blobs_are_never_rewritten(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull(NAME)
    before = identities(server)
    server.client.pull(NAME)
    assert identities(server) == before
    # Without its records a server packs everything again, and finds the blobs in the storage.
    assert server.stop() == 0
    shutil.rmtree(server.storage / "records")
    other = start_server()
    assert other.client.pull(NAME) == image
    assert identities(other) == before


def test_storage_cannot_be_written(start_server: StartServer) -> None:
    # Root may write anywhere, so a file takes the place of a directory.
    server = start_server()
    shutil.rmtree(server.storage / "temporary")
    (server.storage / "temporary").touch()
    response = server.client.manifest("hello")
    assert response.status == 500
    assert response.errors
    assert str(server.storage) not in response.body.decode()
    assert server.client.get("/v2/").status == 200


def test_pulls_leak_no_descriptors(start_server: StartServer) -> None:
    server = start_server()
    server.client.pull("big/hello")
    descriptors = Path("/proc") / str(server.process.pid) / "fd"
    before = len(list(descriptors.iterdir()))
    images: list[PulledImage] = [server.client.pull("big/hello") for _ in range(3)]
    assert len(images) == 3
    assert len(list(descriptors.iterdir())) <= before + 2
