"""Which images have a store path: from records of this server and of others, and planted ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from nixery.builds import served_paths
from nixery.builds.image_closure import ClosurePath, ImageClosure, ImageClosures
from nixery.builds.served_paths import ServedPaths
from nixery.closure import PathInfo, StorePath
from nixery.errors import TooBusy
from nixery.oci.digest import Digest
from nixery.storage.records import IMAGE_CLOSURES, ListedRecord, RecordStore

HASH = "ab" * 32
IMAGES = [Digest.of(b"%d" % number) for number in range(80)]


def digits(letter: str) -> str:
    return letter * 32


def closure(*letters: str, name: str = "image", nar_hash: str = HASH, deriver: str = "") -> ImageClosure:
    """A closure whose paths refer to the ones before them."""
    paths = [
        ClosurePath(
            path=f"{digits(letter)}-{letter}",
            size=number,
            layer=number + 1,
            references=list(range(number)),
            nar_hash=nar_hash,
            deriver=deriver,
        )
        for number, letter in enumerate(letters)
    ]
    return ImageClosure(paths, [], [name])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CountingRecords(RecordStore):
    """Records whose listings and readings are counted."""

    listings = readings = 0

    async def scan(self, kind: str, prefix: str = "", after: str = "") -> AsyncGenerator[ListedRecord, None]:
        self.listings += 1
        async for listed in super().scan(kind, prefix, after):
            yield listed

    async def get(self, kind: str, key: str) -> bytes | None:
        self.readings += 1
        return await super().get(kind, key)


@pytest.fixture
def counting(records: RecordStore) -> CountingRecords:
    return CountingRecords(records._driver)


def served_by(records: RecordStore, clock: Clock) -> ServedPaths:
    return ServedPaths(ImageClosures(records), records, 5.0, clock)


async def names_of(served: ServedPaths, letter: str) -> list[str]:
    return [name for image in await served.find(digits(letter)) for name in image.names]


async def test_paths_of_stored_images_are_found_newest_first(records: RecordStore) -> None:
    others = ImageClosures(records)
    await others.keep(IMAGES[0], closure("a", "b", name="first"))
    await others.keep(IMAGES[1], closure("b", "c", name="second"))
    served = served_by(records, Clock())
    assert await names_of(served, "a") == ["first"]
    assert sorted(await names_of(served, "b")) == ["first", "second"]
    assert await names_of(served, "d") == []
    info, layer = await served.info(IMAGES[1], digits("c")) or (None, 0)
    assert (info, layer) == (
        PathInfo(
            StorePath(f"{digits('c')}-c"),
            HASH,
            1,
            (StorePath(f"{digits('b')}-b"),),
            "",
            refers_to_itself=False,
        ),
        2,
    )
    await served.close()


async def test_an_image_of_this_server_is_found_without_a_listing(counting: CountingRecords) -> None:
    closures = ImageClosures(counting)
    served = ServedPaths(closures, counting, 5.0, Clock())
    assert await names_of(served, "a") == []
    listings = counting.listings
    await closures.keep(IMAGES[0], closure("a"))
    assert await names_of(served, "a") == ["image"]
    assert counting.listings == listings


@pytest.mark.security
async def test_unknown_paths_cost_a_listing_now_and_then(counting: CountingRecords) -> None:
    clock = Clock()
    served = served_by(counting, clock)
    others = ImageClosures(counting)
    await others.keep(IMAGES[0], closure("a"))
    for _ in range(100):
        assert await names_of(served, "z") == []
    assert (counting.listings, counting.readings) == (1, 1)
    await others.keep(IMAGES[1], closure("b"))
    assert await names_of(served, "b") == []
    clock.now = 5.0
    found = await asyncio.gather(*(names_of(served, "b") for _ in range(100)))
    assert found == [["image"]] * 100
    assert (counting.listings, counting.readings) == (2, 2)


async def test_a_record_that_was_deleted_since(records: RecordStore) -> None:
    clock = Clock()
    served = served_by(records, clock)
    await ImageClosures(records).keep(IMAGES[0], closure("a"))
    assert await names_of(served, "a") == ["image"]
    await records.delete(IMAGE_CLOSURES, IMAGES[0].hex)
    assert await served.info(IMAGES[0], digits("a")) is None
    assert await names_of(served, "a") == []


async def test_a_record_of_an_earlier_version_has_no_paths(records: RecordStore) -> None:
    served = served_by(records, Clock())
    await ImageClosures(records).keep(IMAGES[0], closure("a", nar_hash=""))
    assert await names_of(served, "a") == []
    assert await served.info(IMAGES[0], digits("a")) is None


@pytest.mark.security
@pytest.mark.parametrize("text", ["a\nSig: planted:AAAA", "../../etc/passwd", f"{'a' * 32}-b c"])
async def test_a_planted_record_adds_no_line_to_an_answer(text: str, records: RecordStore) -> None:
    planted = ClosurePath(path=f"{digits('a')}-{text}", size=1, layer=1, references=[], nar_hash=HASH)
    await ImageClosures(records).keep(IMAGES[0], ImageClosure([planted], []))
    await ImageClosures(records).keep(IMAGES[1], closure("b", deriver=text))
    served = served_by(records, Clock())
    assert await served.info(IMAGES[0], digits("a")) is None
    assert await served.info(IMAGES[1], digits("b")) is None


@pytest.mark.security
async def test_the_index_is_bounded(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_paths, "_MOST_IMAGES", 70)
    closures = ImageClosures(records)
    served = ServedPaths(closures, records, 5.0, Clock())
    for number, image in enumerate(IMAGES):
        await closures.keep(image, closure("a", name=str(number)))
    newest = [str(number) for number in reversed(range(80))]
    assert await names_of(served, "a") == newest[:64]
    monkeypatch.setattr(served_paths, "_MOST_PAIRS", 66)
    await closures.keep(IMAGES[0], closure("b", "c", name="b and c"))
    assert await names_of(served, "b") == ["b and c"]
    # The path that was added first made room for the third pair.
    await closures.keep(IMAGES[1], closure("d", name="d"))
    assert await names_of(served, "d") == ["d"]
    assert await names_of(served, "b") == ["b and c"]


async def test_a_request_does_not_wait_for_long(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that the path is missing would be remembered for an hour."""
    monkeypatch.setattr(served_paths, "_LISTING_TIMEOUT", 0.0)
    await ImageClosures(records).keep(IMAGES[0], closure("a"))
    served = served_by(records, Clock())
    with pytest.raises(TooBusy, match="it is still reading which store paths its images have"):
        await served.find(digits("a"))
    await served.read_all()
    assert await names_of(served, "a") == ["image"]
