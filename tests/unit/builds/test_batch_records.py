from pathlib import Path

import pytest

from nixery.builds.popularity import BATCHES, Batch, BatchRecords
from nixery.image.platform import AMD64, ARM64
from nixery.sources.source import Pin
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore

KEY = "00ff"
PIN = Pin("fake:", "one", "one")


def batch(*derivations: Path) -> Batch:
    return Batch(tuple(map(str, derivations)), (), (), ("x (broken)",), ())


async def test_a_batch_is_kept_as_long_as_its_derivations_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = True
    monkeypatch.setattr("nixery.builds.popularity.os.path.lexists", lambda _: alive)
    records = RecordStore(FilesystemDriver(tmp_path, tmp_path))
    kept = BatchRecords(records, "this program")
    key = kept.key(PIN, AMD64, ["a", "b"])
    assert await kept.batch(key) is None
    derivation = Path("/nix/store") / f"{'a' * 32}-a.drv"
    await kept.keep_batch(key, batch(derivation))
    assert await kept.batch(key) == batch(derivation)
    alive = False
    assert await kept.batch(key) is None


async def test_torn_records_are_none(tmp_path: Path) -> None:
    records = RecordStore(FilesystemDriver(tmp_path, tmp_path))
    kept = BatchRecords(records, "this program")
    await records.put(BATCHES, KEY, b'{"derivations": [')
    assert await kept.batch(KEY) is None
    await kept.keep_references(KEY, {"hash-a": ["b"]})
    assert await kept.references(KEY) == {"hash-a": ["b"]}


def test_the_key_has_all_that_matters(tmp_path: Path) -> None:
    kept = BatchRecords(RecordStore(FilesystemDriver(tmp_path, tmp_path)), "this program")
    other = BatchRecords(RecordStore(FilesystemDriver(tmp_path, tmp_path)), "another")
    keys = {
        kept.key(PIN, AMD64, ["a"]),
        kept.key(Pin("fake:", "two", "two"), AMD64, ["a"]),
        kept.key(PIN, ARM64, ["a"]),
        kept.key(PIN, AMD64, ["a", "b"]),
        other.key(PIN, AMD64, ["a"]),
    }
    assert len(keys) == 5
