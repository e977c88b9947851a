from __future__ import annotations

import asyncio

import pytest

from nixery.gc.collector import Collector
from nixery.gc.watermark import WatermarkMonitor, Watermarks
from nixery.quantities import DiskMark
from nixery.storage.files import FileSystemUse
from tests.unit.gc.conftest import DAY, HOUR, Store, parts


def keeper(store: Store, used: int, high: str, low: str) -> WatermarkMonitor:
    collector = Collector(store.blobs, store.records, HOUR)
    marks = Watermarks(DiskMark.parse(high), DiskMark.parse(low))
    usage = FileSystemUse(used, 100_000)
    return WatermarkMonitor(collector, store.blobs, store.records, lambda: usage, marks)


@pytest.mark.parametrize(
    ("used", "left"),
    [(89_000, 3), (91_000, 2), (101_000, 1)],
    ids=["below the high mark", "one has to go", "two have to go"],
)
async def test_percent_of_the_file_system(store: Store, used: int, left: int) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(3)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    await keeper(store, used, "90%", "85%").look()
    assert await store.digests() == parts(*images[:left])


@pytest.mark.parametrize(("high", "left"), [(40_000, 3), (30_000, 2)])
async def test_bytes_of_all_blobs(store: Store, high: int, left: int) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(3)]
    store.age(10 * DAY)
    for number, image in enumerate(images):
        await store.use(image, ago=(number + 1) * DAY)
    await keeper(store, 0, str(high), "25000").look()
    assert await store.digests() == parts(*images[:left])


async def test_it_goes_on_after_a_failure(store: Store) -> None:
    await store.layer(b"x" * 10_000)
    store.age(10 * DAY)
    # A file where a directory has to be.
    records = store.directory / "records"
    records.rename(store.directory / "away")
    records.touch()
    running = asyncio.ensure_future(keeper(store, 0, "10", "5").run(HOUR, 0.01))
    await asyncio.sleep(0.1)
    assert len(await store.digests()) == 1
    records.unlink()
    (store.directory / "away").rename(records)
    async with asyncio.timeout(10):
        while await store.digests():  # noqa: ASYNC110 -- files tell nobody
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_goes_on_after_what_nobody_expected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tending = keeper(store, 0, "10", "5")
    looked = 0

    async def look() -> None:
        nonlocal looked
        looked += 1
        raise KeyError(looked)

    monkeypatch.setattr(tending, "look", look)
    running = asyncio.ensure_future(tending.run(HOUR, 0.01))
    async with asyncio.timeout(10):
        while looked < 3:  # noqa: ASYNC110 -- the keeper tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
