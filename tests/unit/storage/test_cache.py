import asyncio
import os
import resource
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from structlog.testing import capture_logs

from nixery.oci.digest import Digest
from nixery.storage import cache
from nixery.storage.blobs import BlobStore, StoredBlob, StoredFile
from nixery.storage.bucket import Bucket, BucketDriver
from nixery.storage.cache import BlobCache

CONTENTS = [bytes([number]) * 1000 for number in range(4)]


class Cached(BlobStore):
    """A store above a bucket, with the parts that tests inspect."""

    def __init__(self, bucket: BucketDriver, cache: BlobCache) -> None:
        super().__init__(bucket, cache)
        self.cache = cache


@pytest.fixture
def bucket() -> BucketDriver:
    return BucketDriver(Bucket("memory", MemoryStore()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    return tmp_path


def cached(bucket: BucketDriver, directory: Path, capacity: int = 2500) -> Cached:
    return Cached(bucket, BlobCache(directory, directory / "temporary", capacity))


async def find(store: Cached, content: bytes) -> StoredBlob:
    found = await store.find(Digest.of(content))
    assert found is not None
    return found


async def read(store: Cached, content: bytes, last: int = 999) -> bytes:
    stream: AsyncIterator[bytes] = store.stream(await find(store, content), 0, last)
    return b"".join([chunk async for chunk in stream])


async def test_a_blob_that_was_read_as_a_whole_is_served_from_a_file(
    bucket: BucketDriver, directory: Path
) -> None:
    store = cached(bucket, directory)
    content = CONTENTS[0]
    await store.put(Digest.of(content), content)
    assert await read(store, content, 10) == content[:11]
    assert not isinstance(await find(store, content), StoredFile)
    assert await read(store, content) == content
    found = await find(store, content)
    assert isinstance(found, StoredFile)
    assert found.path.read_bytes() == content
    assert list((directory / "temporary").iterdir()) == []


async def test_the_least_recently_used_copies_are_evicted(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    for content in CONTENTS:
        await store.put(Digest.of(content), content)
    for content in (*CONTENTS[:2], CONTENTS[0], CONTENTS[2]):
        if not isinstance(await find(store, content), StoredFile):
            assert await read(store, content) == content
    kept = [isinstance(await find(store, content), StoredFile) for content in CONTENTS]
    assert kept == [True, False, True, False]
    assert sum(path.stat().st_size for path in (directory / "cache").iterdir()) == 2000


async def test_a_broken_blob_is_not_copied(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    content = CONTENTS[0]
    digest = Digest.of(content)
    await store.put(digest, content)
    bucket.bucket.store.put(f"blobs/sha256/{digest.hex[:2]}/{digest.hex}", CONTENTS[1])
    assert await read(store, content) == CONTENTS[1]
    assert list((directory / "cache").iterdir()) == []


async def test_a_truncated_or_missing_copy_is_not_used(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    content = CONTENTS[0]
    await store.put(Digest.of(content), content)
    for damage in (Path.unlink, Path.touch):
        await read(store, content)
        found = await find(store, content)
        assert isinstance(found, StoredFile)
        found.path.unlink()
        if damage is Path.touch:
            found.path.touch()
        assert not isinstance(await find(store, content), StoredFile)


async def test_deleting_a_blob_deletes_its_copy(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    content = CONTENTS[0]
    await store.put(Digest.of(content), content)
    await read(store, content)
    await store.delete(Digest.of(content))
    assert await store.find(Digest.of(content)) is None
    assert list((directory / "cache").iterdir()) == []


@contextmanager
def no_temporary_file(directory: Path) -> Iterator[None]:
    (directory / "temporary").rmdir()
    (directory / "temporary").touch()
    yield


@contextmanager
def no_room(directory: Path) -> Iterator[None]:  # noqa: ARG001 -- the limit applies to the whole process
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_cache_directory(directory: Path) -> Iterator[None]:
    (directory / "cache").rmdir()
    (directory / "cache").touch()
    yield


@pytest.mark.parametrize("fault", [no_temporary_file, no_room, no_cache_directory])
async def test_a_disk_that_takes_no_copy_does_not_break_the_transfer(
    bucket: BucketDriver, directory: Path, fault: Callable[[Path], AbstractContextManager[None]]
) -> None:
    store = cached(bucket, directory, 1 << 30)
    content = os.urandom(4 << 20)  # streamed in several pieces
    await store.put(Digest.of(content), content)
    with fault(directory), capture_logs() as lines:
        assert await read(store, content, len(content) - 1) == content
    assert [line["log_level"] for line in lines] == ["warning"]
    assert not isinstance(await find(store, content), StoredFile)
    # The next transfer tries again.
    for name in ("temporary", "cache"):
        if (directory / name).is_file():
            (directory / name).unlink()
            (directory / name).mkdir()
    assert await read(store, content, len(content) - 1) == content
    assert isinstance(await find(store, content), StoredFile)
    assert list((directory / "temporary").iterdir()) == []


async def begin(store: Cached, content: bytes) -> tuple[bytes, AsyncGenerator[bytes, None]]:
    stream = store.stream(await find(store, content), 0, len(content) - 1)
    return await anext(stream), stream


def written(directory: Path) -> list[int]:
    """Sizes of unfinished copies and of copies."""
    return [path.stat().st_size for name in ("temporary", "cache") for path in (directory / name).iterdir()]


async def test_concurrent_readers_of_a_blob_write_one_copy(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    content = CONTENTS[0]
    await store.put(Digest.of(content), content)
    begun = [await begin(store, content) for _ in range(3)]
    assert written(directory) == [1000]
    for first, rest in reversed(begun):
        assert first + b"".join([chunk async for chunk in rest]) == content
    assert isinstance(await find(store, content), StoredFile)
    assert written(directory) == [1000]


async def test_unfinished_copies_count_towards_the_capacity(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    for content in CONTENTS:
        await store.put(Digest.of(content), content)
    await read(store, CONTENTS[0])
    begun = []
    for content in CONTENTS[1:]:
        begun.append(await begin(store, content))
        assert sum(written(directory)) <= 2000
    for content, (first, rest) in zip(CONTENTS[1:], begun, strict=True):
        assert first + b"".join([chunk async for chunk in rest]) == content
    kept = [isinstance(await find(store, content), StoredFile) for content in CONTENTS]
    assert kept == [False, True, True, False]


async def test_an_interrupted_transfer_frees_its_room(bucket: BucketDriver, directory: Path) -> None:
    store = cached(bucket, directory)
    for content in CONTENTS:
        await store.put(Digest.of(content), content)
    for content in (*CONTENTS, *CONTENTS):
        _, rest = await begin(store, content)
        await rest.aclose()
    assert written(directory) == []
    assert await read(store, CONTENTS[0]) == CONTENTS[0]
    assert isinstance(await find(store, CONTENTS[0]), StoredFile)


async def checked(store: Cached, content: bytes) -> None:
    """Request a blob like a client, and wait for the check of its copy."""
    await store.find_cached(Digest.of(content))
    await asyncio.gather(*store.cache._checks.values())


async def test_a_copy_of_an_earlier_process_is_served_after_it_was_verified(
    bucket: BucketDriver, directory: Path
) -> None:
    content = CONTENTS[0]
    await BlobStore(bucket).put(Digest.of(content), content)
    await read(cached(bucket, directory), content)
    store = cached(bucket, directory)
    assert not isinstance(await find(store, content), StoredFile)
    # Requests do not wait for the check: they get the bucket's bytes, which are not copied again.
    assert not isinstance(await store.find_cached(Digest.of(content)), StoredFile)
    place = directory / "cache" / Digest.of(content).hex
    copy = place.stat().st_ino
    assert await read(store, content) == content
    await checked(store, content)
    found = await find(store, content)
    assert isinstance(found, StoredFile)
    assert found.path.stat().st_ino == copy
    # It is not checked again.
    await store.find_cached(Digest.of(content))
    assert store.cache._checks == {}


async def test_a_copy_with_a_flipped_bit_is_not_served_after_a_restart(
    bucket: BucketDriver, directory: Path
) -> None:
    content = CONTENTS[0]
    await BlobStore(bucket).put(Digest.of(content), content)
    await read(cached(bucket, directory), content)
    place = directory / "cache" / Digest.of(content).hex
    place.chmod(0o644)
    place.write_bytes(b"\1" + content[1:])
    store = cached(bucket, directory)
    with capture_logs() as lines:
        await checked(store, content)
    assert [line["event"] for line in lines] == ["deleted a corrupted copy of a blob"]
    assert written(directory) == []
    assert not isinstance(await store.find_cached(Digest.of(content)), StoredFile)
    assert await read(store, content) == content
    assert isinstance(await store.find_cached(Digest.of(content)), StoredFile)


async def test_a_copy_that_was_replaced_during_its_check_stays(
    bucket: BucketDriver, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, made_again = threading.Event(), threading.Event()

    def slow(path: Path, digest: Digest) -> bool:  # noqa: ARG001 -- the previous file is gone
        begun.set()
        assert made_again.wait(60)
        return False

    content = CONTENTS[0]
    await BlobStore(bucket).put(Digest.of(content), content)
    await read(cached(bucket, directory), content)
    store = cached(bucket, directory)
    monkeypatch.setattr(cache, "_has_digest", slow)
    await store.find_cached(Digest.of(content))
    assert await asyncio.to_thread(begun.wait, 60)
    await store.delete(Digest.of(content))
    await store.put(Digest.of(content), content)
    await read(store, content)
    made_again.set()
    await checked(store, content)
    assert isinstance(await find(store, content), StoredFile)
