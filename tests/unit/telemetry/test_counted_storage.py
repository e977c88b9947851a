"""A counted driver on a real directory with failing permissions and contents."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from nixery.errors import BlobVerificationFailed, StorageError
from nixery.oci.digest import Digest
from nixery.storage.blobs import BlobStore, StoredBlob
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore
from nixery.telemetry.storage import CountedDriver, StorageErrors

CONTENT = b"content"
DIGEST = Digest.of(CONTENT)


class World:
    def __init__(self, directory: Path) -> None:
        self.registry = CollectorRegistry()
        errors = StorageErrors(self.registry)
        (directory / "temporary").mkdir()
        driver = CountedDriver(FilesystemDriver(directory, directory / "temporary"), errors)
        self.blobs, self.records = BlobStore(driver), RecordStore(driver)

    def errors(self) -> dict[str, float]:
        (family,) = [f for f in self.registry.collect() if f.name == "nixery_storage_errors"]
        return {
            sample.labels["operation"]: sample.value
            for sample in family.samples
            if sample.value and "_total" in sample.name
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_successful_calls_are_not_counted_as_errors(world: World) -> None:
    await world.blobs.put(DIGEST, CONTENT)
    with world.blobs.create() as writer:
        writer.write(b"more")
        more = writer.commit()
    found = await world.blobs.find(DIGEST)
    assert found is not None
    assert await world.blobs.read(found) == CONTENT
    assert {blob.digest async for blob in world.blobs.scan()} == {DIGEST, more.digest}
    await world.blobs.delete(DIGEST)
    assert await world.blobs.find(DIGEST) is None
    await world.records.put("tags", "ab", b"{}")
    await world.records.renew("tags", "ab", b"{}")
    assert await world.records.get("tags", "ab") == b"{}"
    assert [record.key async for record in world.records.scan("tags")] == ["ab"]
    assert [record.key async for record in world.records.scan("tags", "b")] == []
    await world.records.delete("tags", "ab")
    assert await world.records.get("tags", "ab") is None
    assert world.errors() == {}


async def test_errors_are_counted_and_reraised(world: World) -> None:
    with pytest.raises(StorageError):
        _ = [chunk async for chunk in world.blobs.stream(StoredBlob(DIGEST, 7), 0, 6)]
    with pytest.raises(BlobVerificationFailed):
        await world.blobs.put(DIGEST, b"other")  # the caller's mistake
    with pytest.raises(StorageError), world.blobs.create():
        raise StorageError("no space left")
    assert world.errors() == {"read": 1, "write": 1}


async def test_errors_of_other_components_are_not_counted(world: World) -> None:
    with pytest.raises(ZeroDivisionError), world.blobs.create():
        raise ZeroDivisionError
    assert world.errors() == {}
