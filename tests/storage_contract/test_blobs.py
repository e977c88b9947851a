import asyncio
import threading
import time

import pytest

from nixery.errors import BlobUnknown, BlobVerificationFailed, StorageError
from nixery.oci.digest import Digest
from nixery.storage.blobs import LARGEST_DOCUMENT, ListedBlob, StoredBlob, blob_name, size_name
from nixery.storage.opening import Storage
from tests.storage_contract.conftest import OpenStorage
from tests.support.object_stores import ObjectStore

# Sizes around the limits of a single upload and of parts.
SIZES = [1, 1000, 8 * 1024 * 1024 - 1, 8 * 1024 * 1024, 20 * 1024 * 1024 + 7]


def content_of(size: int, seed: bytes = b"") -> bytes:
    block = Digest.of(seed).hex.encode() + bytes(range(256))
    return (block * (size // len(block) + 1))[:size]


def write(storage: Storage, content: bytes) -> StoredBlob:
    with storage.blobs.create() as writer:
        for start in range(0, len(content), 300_000):
            writer.write(content[start : start + 300_000])
        return writer.commit()


async def read(storage: Storage, blob: StoredBlob, first: int, last: int) -> bytes:
    return b"".join([chunk async for chunk in storage.blobs.stream(blob, first, last)])


async def listed(storage: Storage) -> list[ListedBlob]:
    return [blob async for blob in storage.blobs.scan()]


@pytest.mark.parametrize("size", SIZES)
async def test_written_bytes_are_read_back(storage: Storage, size: int) -> None:
    content = content_of(size)
    written = write(storage, content)
    assert written.digest == Digest.of(content)
    assert written.size == size
    found = await storage.blobs.find(written.digest)
    assert found == written
    assert await read(storage, found, 0, size - 1) == content
    assert await storage.blobs.read(found) == (content if size <= LARGEST_DOCUMENT else None)


async def test_ranges(storage: Storage) -> None:
    content = content_of(3_000_000)
    blob = write(storage, content)
    for first, last in [(0, 0), (1, 2_500_000), (2_999_999, 2_999_999), (1_048_576, 2_097_151)]:
        assert await read(storage, blob, first, last) == content[first : last + 1]
    with pytest.raises(StorageError):
        await read(storage, blob, 2_999_000, 3_000_001)


async def test_nothing_is_found_under_an_unknown_digest(storage: Storage) -> None:
    assert await storage.blobs.find(Digest.of(b"never written")) is None


@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_an_uncommitted_write_leaves_nothing(storage: Storage, size: int) -> None:
    def write_half() -> None:
        with storage.blobs.create() as writer:
            writer.write(content_of(size))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert await listed(storage) == []
    assert await storage.blobs.find(Digest.of(content_of(size))) is None


async def test_put(storage: Storage) -> None:
    digest = Digest.of(b"content")
    for _ in range(2):
        await storage.blobs.put(digest, b"content")
        found = await storage.blobs.find(digest)
        assert found is not None
        assert await storage.blobs.read(found) == b"content"
    with pytest.raises(BlobVerificationFailed):
        await storage.blobs.put(digest, b"other")


@pytest.mark.parametrize("size", [100_000, 10_000_000])
async def test_writers_of_the_same_bytes_at_the_same_time(
    backend: ObjectStore, open_at: OpenStorage, size: int
) -> None:
    content = content_of(size)
    stores = [open_at(backend) for _ in range(4)]
    failures: list[BaseException] = []

    def run(storage: Storage) -> None:
        try:
            write(storage, content)
        except BaseException as error:  # noqa: BLE001 -- asserted below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(storage,)) for storage in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    (blob,) = await listed(stores[0])
    found = await stores[0].blobs.find(blob.digest)
    assert found is not None
    assert await read(stores[0], found, 0, size - 1) == content


async def test_a_listing_of_more_than_a_page(storage: Storage) -> None:
    before = time.time()
    digests = set()
    for start in range(0, 1100, 20):
        contents = [b"%d" % number for number in range(start, start + 20)]
        digests |= {Digest.of(content) for content in contents}
        await asyncio.gather(*(storage.blobs.put(Digest.of(content), content) for content in contents))
    found = await listed(storage)
    assert len(found) == len(digests)
    assert {blob.digest for blob in found} == digests
    assert all(before - 5 < blob.modified < time.time() + 5 for blob in found)


async def test_a_deleted_blob_is_gone(backend: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(backend)
    blob = write(storage, b"content")
    assert await storage.blobs.find(blob.digest) == blob
    for _ in range(2):
        await storage.blobs.delete(blob.digest)
        assert await storage.blobs.find(blob.digest) is None
    assert await listed(storage) == []


async def test_a_probe_leaves_nothing(storage: Storage) -> None:
    await storage.blobs.probe()
    assert await listed(storage) == []


@pytest.mark.parametrize("size", [1, 3_000_000])
async def test_chunks_add_up_to_the_blob(storage: Storage, size: int) -> None:
    content = content_of(size)
    blob = write(storage, content)
    chunks = [chunk async for chunk in storage.blobs.chunks(blob.digest)]
    assert b"".join(chunks) == content
    assert max(map(len, chunks)) <= 1024 * 1024
    with pytest.raises(BlobUnknown):
        [chunk async for chunk in storage.blobs.chunks(Digest.of(b"never written"))]


@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_quarantine(storage: Storage, size: int) -> None:
    content = content_of(size)
    blob = write(storage, content)
    assert await storage.blobs.find(blob.digest) == blob
    for _ in range(2):
        await storage.blobs.quarantine(blob.digest)
        assert await storage.blobs.find(blob.digest) is None
        assert await storage.blobs.find_cached(blob.digest) is None
    assert await listed(storage) == []
    assert write(storage, content).digest == blob.digest
    assert await storage.blobs.find(blob.digest) is not None


async def test_another_process_finds_the_blob(backend: ObjectStore, open_at: OpenStorage) -> None:
    blob = write(open_at(backend), b"content")
    assert await open_at(backend).blobs.find(blob.digest) == blob


@pytest.mark.parametrize("damaged", [b"", b"fragment"])
@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_a_fragment_is_not_there_and_is_replaced(
    backend: ObjectStore, open_at: OpenStorage, damaged: bytes, size: int
) -> None:
    storage = open_at(backend)
    content = content_of(size)
    blob = write(storage, content)
    await storage.driver.write(blob_name(blob.digest), damaged)
    other = open_at(backend)
    assert await other.blobs.find(blob.digest) is None
    write(other, content)
    found = await other.blobs.find(blob.digest)
    assert found is not None
    assert await read(other, found, 0, size - 1) == content


async def test_a_commit_returns_what_stat_finds(storage: Storage) -> None:
    for _ in range(2):
        with storage.driver.create() as upload:
            upload.write(b"content")
            entry = upload.commit("blobs/sha256/ab/cd", {"blobs/sha256/ab/cd.size": b"7"})
        assert await storage.driver.stat("blobs/sha256/ab/cd") == entry


async def test_a_commit_replaces_what_is_beside(backend: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(backend)
    blob = write(storage, b"content")
    await storage.driver.write(size_name(blob.digest), b"8")
    assert write(storage, b"content").digest == blob.digest
    assert await open_at(backend).blobs.find(blob.digest) is not None


async def test_a_missing_object_is_no_error_except_for_a_stream(storage: Storage) -> None:
    driver, name = storage.driver, "records/pins/ab/abcd"
    assert await driver.stat(name) is None
    assert await driver.read(name, 10) is None
    await driver.move(name, "quarantine/abcd")
    await driver.delete(name)
    assert [entry async for entry in driver.list("records/pins")] == []
    for last in (None, 5):
        with pytest.raises(FileNotFoundError):
            [chunk async for chunk in driver.stream(name, 0, last)]


async def test_objects_are_listed_in_the_order_of_their_whole_names(storage: Storage) -> None:
    names = [f"records/pins/{name}" for name in ("a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "b")]
    names = [name for name in names if name not in {"records/pins/a", "records/pins/a/b"}]
    for name in reversed(names):
        await storage.driver.write(name, b"content")
    assert [entry.name async for entry in storage.driver.list("records/pins")] == names
    for after in (
        "records/pins/a",
        "records/pins/a/b",
        "records/pins/a/b-d",
        "records/pins/a/b/c",
        "records/pins/z",
    ):
        found = [entry.name async for entry in storage.driver.list("records/pins", after)]
        assert found == [name for name in names if name > after]
