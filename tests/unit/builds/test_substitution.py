"""The memory that paths of binary caches take is bounded, whatever hostile packages and caches have in them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from nixery.binary_caches.client import BinaryCaches
from nixery.binary_caches.configuration import BinaryCache, CacheConfiguration
from nixery.binary_caches.narinfo import Trust
from nixery.builds.substitution import Names, Substitution
from nixery.errors import AnswerTooLarge, UnsafeContents
from nixery.packing.listing import Kept, Listing
from nixery.storage.records import RecordStore
from tests.support.binary_cache import (
    Answer,
    SigningKey,
    cache_server,
    nar_of_file,
    narinfo_name,
    narinfo_text,
    path_info,
    store_path,
)

_MIB = 1 << 20


@pytest.fixture
def substitution(records: RecordStore) -> Substitution:
    return Substitution(BinaryCaches(CacheConfiguration((), Trust())), records)


def _listing(number: int, size: int) -> Listing:
    """Return a listing whose record is a thousandth of it: many symlinks with the same long target."""
    entries = b"".join(b"%06d/l%b\0" % (each, b"t" * 4000) for each in range(size // 4009 + 1))
    return Listing(b"d0", [entries + b"x%d/r0\0" % number], Kept())


async def test_listings_are_forgotten_by_the_memory_that_they_take(
    substitution: Substitution, storage: Path
) -> None:
    hashes = [f"{number:064x}" for number in range(100)]
    for number, nar_hash in enumerate(hashes):
        await substitution.keep_listing(nar_hash, _listing(number, _MIB))
    shutil.rmtree(storage)
    in_memory = [await substitution.listing(nar_hash) for nar_hash in hashes]
    assert 0 < sum(listing is not None for listing in in_memory) <= 64


async def test_the_names_of_an_image_have_a_limit(substitution: Substitution) -> None:
    paths = [store_path(f"p{number}") for number in range(5)]
    names = Names(substitution, {path: f"{number:064x}" for number, path in enumerate(paths)})
    listing = _listing(0, 60 * _MIB)
    for _ in range(2):  # again is not more
        for path in paths[:4]:
            names[path] = listing
    names.require_room(paths[4])
    with pytest.raises(UnsafeContents, match="the names of the image's store paths"):
        names[paths[4]] = listing
    # The other layers fetch nothing more.
    with pytest.raises(UnsafeContents):
        names.require_room(paths[0])


async def test_a_cache_that_adds_to_narinfos_does_not_fill_the_memory(records: RecordStore) -> None:
    # Without a key: what follows the signed fields is the cache's own.
    key, nar = SigningKey(), nar_of_file(b"")
    infos = [path_info(f"p{number}", nar) for number in range(300)]
    whole = path_info("whole", nar, tuple(info.path for info in infos))
    with cache_server() as server:
        for info in (*infos, whole):
            padding = {"Sig": key.sign(info)} | ({"Padding": "x" * 900_000} if info != whole else {})
            server.answers[narinfo_name(info.path)] = lambda _, info=info, padding=padding: Answer(  # type: ignore[misc]
                narinfo_text(info, padding)
            )
        configuration = CacheConfiguration((BinaryCache.parse(server.url),), Trust.parse(key.public))
        substitution = Substitution(BinaryCaches(configuration), records)
        with pytest.raises(AnswerTooLarge, match=r"^the list of all store paths .* 16\.0 MiB is the limit"):
            await substitution.closures([whole.path])
        assert len(server.requests) < 200
        await substitution.close()


async def test_a_record_replaces_no_names_that_a_nar_has_given_meanwhile(substitution: Substitution) -> None:
    path, nar_hash = store_path("packed"), "0" * 64
    wrong, right = _listing(0, 10), _listing(1, 10)
    await substitution.keep_listing(nar_hash, wrong)
    names = Names(substitution, {path: nar_hash})
    reading = asyncio.create_task(names.have([path]))
    names[path] = right  # a thread packs the path while the record is read
    await reading
    assert names[path] is right
    await names.keep()
    assert await substitution.listing(nar_hash) is right
