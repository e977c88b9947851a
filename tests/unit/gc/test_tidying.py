"""The bounds of the kinds of records, on real records and, for many of them, on a list."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nixery.errors import CollectionRunning
from nixery.gc.collector import CollectionLock, Collector
from nixery.gc.records import CHECKS, enforce_bounds
from nixery.gc.watermark import WatermarkMonitor, Watermarks
from nixery.quantities import DiskMark
from nixery.storage.files import FileSystemUse, file_system_use
from nixery.storage.leases import COLLECTIONS, USES
from nixery.storage.records import KINDS, ListedRecord, RecordKind, RecordStore
from tests.unit.gc.conftest import DAY, HOUR, Store, parts

# What the collector alone deletes.
COLLECTORS = {USES, COLLECTIONS}
OTHERS = sorted(KINDS.keys() - COLLECTORS)


def keeper(
    store: Store, use: FileSystemUse | None = None, high: str = "90%", low: str = "80%"
) -> WatermarkMonitor:
    marks = Watermarks(DiskMark.parse(high), DiskMark.parse(low))
    usage = use or FileSystemUse(0, 100)
    return WatermarkMonitor(
        Collector(store.blobs, store.records, HOUR), store.blobs, store.records, lambda: usage, marks
    )


async def put(store: Store, kind: str, number: int, ago: float) -> str:
    key = f"{number:064x}"
    await store.records.put(kind, key, b"{}")
    os.utime(store.record(kind, key), (time.time() - ago,) * 2)
    return key


def test_every_kind_has_bounds_and_a_check() -> None:
    assert CHECKS.keys() == KINDS.keys() - {COLLECTIONS}
    assert all(0 < kind.largest <= 64 << 20 and kind.most > 0 and kind.age > 0 for kind in KINDS.values())


@pytest.mark.parametrize("kind", OTHERS)
async def test_the_oldest_records_go_when_there_are_too_many(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, kind, RecordKind(1000, 10, 365 * DAY))
    keys = [await put(store, kind, number, ago=number * HOUR) for number in range(25)]
    assert await enforce_bounds(store.records, time.time()) == 16
    assert await store.keys(kind) == set(keys[:9])
    assert await enforce_bounds(store.records, time.time()) == 0


@pytest.mark.parametrize("kind", OTHERS)
async def test_old_records_go(store: Store, kind: str) -> None:
    age = KINDS[kind].age
    await put(store, kind, 1, ago=age + HOUR)
    young = await put(store, kind, 2, ago=age - HOUR)
    await keeper(store).tidy()
    assert await store.keys(kind) == {young}


async def test_what_the_collector_and_its_clients_tell_each_other_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in COLLECTORS:
        monkeypatch.setitem(KINDS, kind, RecordKind(1000, 1, DAY))
        for number in range(3):
            await put(store, kind, number, ago=2 * DAY)
    await enforce_bounds(store.records, time.time())
    assert {kind: len(await store.keys(kind)) for kind in COLLECTORS} == dict.fromkeys(COLLECTORS, 3)


async def test_images_go_when_too_many_were_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [await store.image(b"%d" % number) for number in range(5)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    # Each image has two manifests.
    monkeypatch.setitem(KINDS, USES, RecordKind(4096, 7, 365 * DAY))
    await keeper(store).tidy()
    assert await store.digests() == parts(*images[:3])
    assert await store.keys(USES) == {digest.hex for image in images[:3] for digest in image.digests}


async def test_images_that_are_in_use_stay_however_many_they_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [await store.image(b"%d" % number) for number in range(5)]
    monkeypatch.setitem(KINDS, USES, RecordKind(4096, 7, 365 * DAY))
    await keeper(store).tidy()
    assert await store.digests() == parts(*images)


async def test_images_that_were_not_used_for_a_year_go(store: Store) -> None:
    _, new = await store.image(b"old"), await store.image(b"new")
    store.age(400 * DAY)
    await store.use(new, ago=300 * DAY)
    await keeper(store).tidy()
    assert await store.digests() == parts(new)


@pytest.mark.parametrize(
    ("files", "left"), [(89_000, 3), (91_000, 0)], ids=["below the high mark", "above it"]
)
async def test_inodes_are_counted(store: Store, files: int, left: int) -> None:
    images = [await store.image(b"%d" % number) for number in range(3)]
    store.age(10 * DAY)
    use = FileSystemUse(0, 100, files, 100_000)
    await keeper(store, use).look()
    assert await store.digests() == parts(*images[:left])


async def test_so_many_files_go_as_there_are_above_the_low_mark(store: Store) -> None:
    images = [await store.image(b"%d" % number) for number in range(4)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    for number in range(10):
        await put(store, "evaluations", number, ago=number)
    # 10 % of 100 are ten files, which are five blobs: those of two images, of four blobs each.
    await keeper(store, FileSystemUse(0, 100, 91, 100), low="81%").look()
    assert await store.digests() == parts(*images[:2])
    assert len(await store.keys("evaluations")) == 9


async def test_a_file_system_without_a_number_of_inodes(store: Store) -> None:
    image = await store.image(b"one")
    store.age(10 * DAY)
    await keeper(store, FileSystemUse(0, 100, 0, 0)).look()
    assert await store.digests() == parts(image)


async def test_after_a_collection_that_was_not_enough_there_is_a_rest(store: Store) -> None:
    await store.image(b"in use")
    full = keeper(store, FileSystemUse(99, 100))
    await full.look()
    async with CollectionLock(store.records):
        await full.look()  # or it would meet this collection
        with pytest.raises(CollectionRunning):
            await keeper(store, FileSystemUse(99, 100)).look()


async def test_a_collection_from_the_future_keeps_nobody_off(store: Store) -> None:
    key = await put(store, COLLECTIONS, 1, ago=-DAY)
    await store.collect()
    assert key not in await store.keys(COLLECTIONS)


class ManyRecords(RecordStore):
    """Any number of records, which take no memory."""

    def __init__(self, store: Store, number: int) -> None:
        super().__init__(store.driver)
        self.number = number
        self.deleted = 0

    async def scan(self, kind: str, prefix: str = "", after: str = "") -> AsyncGenerator[ListedRecord, None]:
        if kind == "tags":
            assert prefix == after == ""
            for number in range(self.deleted, self.number):
                yield ListedRecord(f"{number:064x}", time.time() - self.number + number)

    async def delete(self, kind: str, key: str) -> None:
        assert (kind, int(key, 16)) < ("tags", self.number)
        self.deleted += 1


async def test_many_records_are_tidied_up_in_bounded_memory(store: Store) -> None:
    records = ManyRecords(store, 100_000)
    tracemalloc.start()
    try:
        assert await enforce_bounds(records, time.time()) == 55_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert records.number - records.deleted == 45_000
    assert peak < 8 << 20


def test_the_file_system_is_asked(tmp_path: Path) -> None:
    use = file_system_use(tmp_path)
    status = os.statvfs(tmp_path)
    assert 0 < use.used <= use.total
    assert use.total_files == 0 or use.used_files <= use.total_files <= status.f_files
