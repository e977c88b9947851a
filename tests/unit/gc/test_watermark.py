from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nixery.errors import CollectionRunning
from nixery.gc.collector import CollectionLock, Collector
from nixery.gc.watermark import WatermarkMonitor, Watermarks
from nixery.quantities import DiskMark
from nixery.storage.files import FileSystemUse, file_system_use
from nixery.storage.records import KINDS, USES, RecordKind
from tests.unit.gc.conftest import DAY, HOUR, Store, parts


def monitor(store: Store, used: int, high: str, low: str) -> WatermarkMonitor:
    collector = Collector(store.blobs, store.records, HOUR)
    marks = Watermarks(DiskMark.parse(high), DiskMark.parse(low))
    usage = FileSystemUse(used, 100_000)
    return WatermarkMonitor(collector, store.blobs, store.records, lambda: usage, marks)


@pytest.mark.parametrize(
    ("used", "left"),
    [(89_000, 3), (91_000, 2), (101_000, 1)],
    ids=["below the high mark", "one is deleted", "two are deleted"],
)
async def test_images_are_deleted_above_a_percentage_of_the_file_system(
    store: Store, used: int, left: int
) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(3)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    await monitor(store, used, "90%", "85%").look()
    assert await store.digests() == parts(*images[:left])


@pytest.mark.parametrize(("high", "left"), [(40_000, 3), (30_000, 2)])
async def test_images_are_deleted_above_a_number_of_bytes(store: Store, high: int, left: int) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(3)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    await monitor(store, 0, str(high), "25000").look()
    assert await store.digests() == parts(*images[:left])


async def test_the_monitor_continues_after_a_failed_collection(store: Store) -> None:
    await store.layer(b"x" * 10_000)
    store.age(10 * DAY)
    # A file in place of a directory.
    records = store.directory / "records"
    records.rename(store.directory / "away")
    records.touch()
    running = asyncio.ensure_future(monitor(store, 0, "10", "5").run(HOUR, 0.01))
    await asyncio.sleep(0.1)
    assert len(await store.digests()) == 1
    records.unlink()
    (store.directory / "away").rename(records)
    async with asyncio.timeout(10):
        while await store.digests():  # noqa: ASYNC110 -- files have no event to wait for
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_monitor_continues_after_an_unexpected_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitoring = monitor(store, 0, "10", "5")
    looked = 0

    async def look() -> None:
        nonlocal looked
        looked += 1
        raise KeyError(looked)

    monkeypatch.setattr(monitoring, "look", look)
    running = asyncio.ensure_future(monitoring.run(HOUR, 0.01))
    async with asyncio.timeout(10):
        while looked < 3:  # noqa: ASYNC110 -- the monitor has no event to wait for
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def by_file_system(
    store: Store, use: FileSystemUse | None = None, high: str = "90%", low: str = "80%"
) -> WatermarkMonitor:
    marks = Watermarks(DiskMark.parse(high), DiskMark.parse(low))
    usage = use or FileSystemUse(0, 100)
    return WatermarkMonitor(
        Collector(store.blobs, store.records, HOUR), store.blobs, store.records, lambda: usage, marks
    )


async def test_the_least_recently_used_images_are_deleted_when_there_are_too_many_leases(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [await store.image(b"%d" % number) for number in range(5)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    # Each image has two manifests.
    monkeypatch.setitem(KINDS, USES, RecordKind(4096, 7, 365 * DAY))
    await by_file_system(store).tidy()
    assert await store.digests() == parts(*images[:3])
    assert await store.keys(USES) == {digest.hex for image in images[:3] for digest in image.digests}


async def test_images_in_use_are_kept_beyond_the_bound_on_leases(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [await store.image(b"%d" % number) for number in range(5)]
    monkeypatch.setitem(KINDS, USES, RecordKind(4096, 7, 365 * DAY))
    await by_file_system(store).tidy()
    assert await store.digests() == parts(*images)


async def test_images_not_used_for_a_year_are_deleted(store: Store) -> None:
    _, new = await store.image(b"old"), await store.image(b"new")
    store.age(400 * DAY)
    await store.use(new, ago=300 * DAY)
    await by_file_system(store).tidy()
    assert await store.digests() == parts(new)


@pytest.mark.parametrize(
    ("files", "left"), [(89_000, 3), (91_000, 0)], ids=["below the high mark", "above it"]
)
async def test_images_are_deleted_when_inodes_run_out(store: Store, files: int, left: int) -> None:
    images = [await store.image(b"%d" % number) for number in range(3)]
    store.age(10 * DAY)
    use = FileSystemUse(0, 100, files, 100_000)
    await by_file_system(store, use).look()
    assert await store.digests() == parts(*images[:left])


async def test_as_many_files_are_deleted_as_exceed_the_low_watermark(store: Store) -> None:
    images = [await store.image(b"%d" % number) for number in range(4)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    for number in range(10):
        await store.put_old("evaluations", number, ago=number)
    # 10 % of 100 are ten files, which are five blobs: those of two images, of four blobs each.
    await by_file_system(store, FileSystemUse(0, 100, 91, 100), low="81%").look()
    assert await store.digests() == parts(*images[:2])
    assert len(await store.keys("evaluations")) == 9


async def test_a_file_system_without_an_inode_count_deletes_nothing(store: Store) -> None:
    image = await store.image(b"one")
    store.age(10 * DAY)
    await by_file_system(store, FileSystemUse(0, 100, 0, 0)).look()
    assert await store.digests() == parts(image)


async def test_a_collection_that_deleted_too_little_is_followed_by_a_cooldown(store: Store) -> None:
    await store.image(b"in use")
    full = by_file_system(store, FileSystemUse(99, 100))
    await full.look()
    async with CollectionLock(store.records):
        await full.look()  # otherwise it would collide with this collection
        with pytest.raises(CollectionRunning):
            await by_file_system(store, FileSystemUse(99, 100)).look()


def test_the_use_of_the_file_system_is_looked_up(tmp_path: Path) -> None:
    use = file_system_use(tmp_path)
    status = os.statvfs(tmp_path)
    assert 0 < use.used <= use.total
    assert use.total_files == 0 or use.used_files <= use.total_files <= status.f_files
