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


async def test_a_record_that_is_deleted_while_others_are_found(records: FilesystemRecordStore) -> None:
    path = records._path("tags", KEYS[1])
    path.unlink()
    path.symlink_to("nowhere")  # It is listed, and is not there when it is read.
    assert await records.find("tags", "") == [KEYS[0].encode(), KEYS[2].encode()]


async def test_a_record_that_is_deleted_while_they_are_scanned(records: FilesystemRecordStore) -> None:
    found = []
    async for listed in records.scan("tags"):
        for key in KEYS:
            await records.delete("tags", key)
        found.append(listed.key)
    assert set(found) <= set(KEYS)


async def test_a_record_that_cannot_be_read_is_not_passed_over(records: FilesystemRecordStore) -> None:
    path = records._path("tags", KEYS[1])
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="cannot read records of tags"):
        await records.find("tags", "")
