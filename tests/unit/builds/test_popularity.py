"""Batches of a package set, and their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.builds.popularity import Batch, BatchRecords, batches
from nixery.image.platform import AMD64, ARM64
from nixery.sources.source import Pin
from nixery.storage.records import BATCHES, RecordStore

KEY = "00ff"
PIN = Pin("fake:", "one", "one")


def batch(*derivations: Path) -> Batch:
    return Batch(tuple(map(str, derivations)), (), (), ("x (broken)",), ())


async def test_a_stored_batch_is_used_while_its_derivations_exist(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = True
    monkeypatch.setattr("nixery.builds.popularity.os.path.lexists", lambda _: alive)
    kept = BatchRecords(records, "this program")
    key = kept.key(PIN, AMD64, ["a", "b"])
    assert await kept.batch(key) is None
    derivation = Path("/nix/store") / f"{'a' * 32}-a.drv"
    await kept.keep_batch(key, batch(derivation))
    assert await kept.batch(key) == batch(derivation)
    alive = False
    assert await kept.batch(key) is None


async def test_a_torn_record_of_a_batch_is_ignored(records: RecordStore) -> None:
    kept = BatchRecords(records, "this program")
    await records.put(BATCHES, KEY, b'{"derivations": [')
    assert await kept.batch(KEY) is None
    await kept.keep_references(KEY, {"hash-a": ["b"]})
    assert await kept.references(KEY) == {"hash-a": ["b"]}


def test_the_key_of_a_batch_depends_on_program_pin_platform_and_names(
    records: RecordStore,
) -> None:
    kept = BatchRecords(records, "this program")
    other = BatchRecords(records, "another")
    keys = {
        kept.key(PIN, AMD64, ["a"]),
        kept.key(Pin("fake:", "two", "two"), AMD64, ["a"]),
        kept.key(PIN, ARM64, ["a"]),
        kept.key(PIN, AMD64, ["a", "b"]),
        other.key(PIN, AMD64, ["a"]),
    }
    assert len(keys) == 5


@given(st.lists(st.text(max_size=255)))
def test_a_batch_fits_into_an_argument(names: list[str]) -> None:
    parts = batches(names * 40)
    assert [name for part in parts for name in part] == names * 40
    assert all(part and len(part) <= 2000 and len(json.dumps(list(part))) <= 110_000 for part in parts)


def test_names_are_split_into_as_few_batches_as_possible() -> None:
    assert [len(part) for part in batches([f"p{n}" for n in range(4100)])] == [2000, 2000, 100]
    assert batches([]) == []
