from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.storage.filesystem_records import FilesystemRecordStore

KEYS = [f"{number:064x}" for number in range(3)]


@pytest.fixture
async def records(tmp_path: Path) -> FilesystemRecordStore:
    records = FilesystemRecordStore(tmp_path, tmp_path)
    for key in KEYS:
        await records.put("tags", key, key.encode())
    return records


async def test_a_record_that_is_deleted_while_they_are_scanned(records: FilesystemRecordStore) -> None:
    found = []
    async for listed in records.scan("tags"):
        for key in KEYS:
            await records.delete("tags", key)
        found.append(listed.key)
    assert set(found) <= set(KEYS)


@pytest.mark.parametrize("what", ["kind", "fan"])
async def test_a_record_that_cannot_be_read_is_not_passed_over(
    records: FilesystemRecordStore, tmp_path: Path, what: str
) -> None:
    in_the_way = tmp_path / "records" / "pins" / ("00" if what == "fan" else "")
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    with pytest.raises(StorageError, match="cannot read a record of pins"):
        await records.get("pins", KEYS[0])
