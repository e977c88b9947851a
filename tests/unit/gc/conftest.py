from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from nixery.builds.image import Image
from nixery.builds.layers import LayerRecord
from nixery.gc.collector import Collector, GcResult, RetentionPolicy
from nixery.image.platform import ARM64
from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Descriptor,
    ExecutionParameters,
    Layer,
    MediaType,
    docker_manifest,
    image_config,
    image_manifest,
)
from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import COLLECTIONS, USES, RecordStore

HOUR = 3600.0
DAY = 24 * HOUR


class Store:
    """A storage in a directory, whose files can be aged."""

    def __init__(self, directory: Path) -> None:
        (directory / "temporary").mkdir()
        self.directory = directory
        self.driver = FilesystemDriver(directory, directory / "temporary")
        self.blobs = BlobStore(self.driver)
        self.records = RecordStore(self.driver)
        self.leases = Leases(self.records, HOUR)

    async def layer(self, content: bytes) -> Layer:
        digest = Digest.of(content)
        await self.blobs.put(digest, content)
        record = LayerRecord(digest=str(digest), size=len(content), diff_id=str(Digest.of(b"")))
        await self.records.put("layers", digest.hex, record.model_dump_json().encode())
        return Layer(Descriptor(MediaType.OCI_LAYER_GZIP, digest, len(content)), Digest.of(b""), ())

    async def image(self, *layers: bytes) -> Image:
        """Store an image as a build does, with its leases."""
        stored = [await self.layer(content) for content in layers]
        config = image_config(ARM64.architecture, ExecutionParameters((), ()), stored)
        image = Image(image_manifest(config, stored), docker_manifest(config, stored))
        for document in (config, *image.manifests):
            await self.blobs.put(document.descriptor.digest, document.content)
        await self.leases.acquire(image.digests)
        return image

    def age(self, seconds: float) -> None:
        """Age all files."""
        for path in self.directory.rglob("*"):
            if path.is_file():
                status = path.stat()
                os.utime(path, (status.st_atime, status.st_mtime - seconds))

    async def use(self, image: Image, ago: float = 0.0) -> None:
        await self.leases.acquire(image.digests)
        for digest in image.digests:
            os.utime(self.record(USES, digest.hex), (time.time() - ago,) * 2)

    def record(self, kind: str, key: str) -> Path:
        return self.directory / "records" / kind / key[:2] / key

    async def put_old(self, kind: str, number: int, ago: float) -> str:
        """Write a record as of some seconds ago; return its key."""
        key = f"{number:064x}"
        await self.records.put(kind, key, b"{}")
        os.utime(self.record(kind, key), (time.time() - ago,) * 2)
        return key

    async def collect(self, limits: RetentionPolicy | None = None, *, dry_run: bool = False) -> GcResult:
        return await Collector(self.blobs, self.records, HOUR).collect(
            limits or RetentionPolicy(), dry_run=dry_run
        )

    async def digests(self) -> set[Digest]:
        return {blob.digest async for blob in self.blobs.scan()}

    async def keys(self, kind: str) -> set[str]:
        return {record.key async for record in self.records.scan(kind)}


def parts(*images: Image) -> set[Digest]:
    return {digest for image in images for digest, _ in image.parts}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


class CollectionReads:
    """Observes how often a process that acquires leases reads the records of collectors.

    A second read shows that it waits: the first one found one of its blobs condemned.
    """

    def __init__(self, records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._get = records.get
        self._read = asyncio.Event()
        monkeypatch.setattr(records, "get", self._observed)

    async def _observed(self, kind: str, key: str) -> bytes | None:
        content = await self._get(kind, key)
        if kind == COLLECTIONS:
            self._read.set()
        return content

    async def wait(self, times: int = 2) -> None:
        for _ in range(times):
            self._read.clear()
            async with asyncio.timeout(30):
                await self._read.wait()
