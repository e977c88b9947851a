"""The bounds of the kinds of records, with real records and, for large numbers, a generated list."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import AsyncGenerator

import pytest

from nixery.gc.collector import RetentionPolicy
from nixery.gc.records import CHECKS, enforce_bounds
from nixery.storage.records import API_TOKENS, COLLECTIONS, KINDS, USES, ListedRecord, RecordKind, RecordStore
from tests.unit.gc.conftest import DAY, HOUR, Store

# Kinds that only the collector deletes.
COLLECTORS = {USES, COLLECTIONS}
# Records that no bound deletes.
EXEMPT = {*COLLECTORS, API_TOKENS}
OTHERS = sorted(KINDS.keys() - EXEMPT)


def test_every_kind_has_a_schema() -> None:
    assert CHECKS.keys() == KINDS.keys() - {COLLECTIONS}


@pytest.mark.parametrize("kind", OTHERS)
async def test_the_oldest_records_are_deleted_when_there_are_too_many(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, kind, RecordKind(1000, 10, 365 * DAY))
    keys = [await store.put_old(kind, number, ago=number * HOUR) for number in range(25)]
    assert await enforce_bounds(store.records, time.time()) == 16
    assert await store.keys(kind) == set(keys[:9])
    assert await enforce_bounds(store.records, time.time()) == 0


@pytest.mark.parametrize("kind", OTHERS)
async def test_old_records_are_deleted(store: Store, kind: str) -> None:
    age = KINDS[kind].age
    await store.put_old(kind, 1, ago=age + HOUR)
    young = await store.put_old(kind, 2, ago=age - HOUR)
    await enforce_bounds(store.records, time.time())
    assert await store.keys(kind) == {young}


async def test_leases_collections_and_api_tokens_have_no_bounds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in EXEMPT:
        monkeypatch.setitem(KINDS, kind, RecordKind(1000, 1, DAY))
        for number in range(3):
            await store.put_old(kind, number, ago=2 * DAY)
    await enforce_bounds(store.records, time.time(), low_on_inodes=True)
    assert {kind: len(await store.keys(kind)) for kind in EXEMPT} == dict.fromkeys(EXEMPT, 3)
    await store.collect(RetentionPolicy(max_age=1))
    assert len(await store.keys(API_TOKENS)) == 3


async def test_a_collection_from_the_future_blocks_no_other(store: Store) -> None:
    key = await store.put_old(COLLECTIONS, 1, ago=-DAY)
    await store.collect()
    assert key not in await store.keys(COLLECTIONS)


class ManyRecords(RecordStore):
    """Any number of generated records, which take no memory."""

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


async def test_many_records_are_deleted_in_bounded_memory(store: Store) -> None:
    records = ManyRecords(store, 100_000)
    tracemalloc.start()
    try:
        assert await enforce_bounds(records, time.time()) == 55_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert records.number - records.deleted == 45_000
    assert peak < 8 << 20
