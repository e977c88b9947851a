from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.opening import Storage, open_storage
from nixery.storage.options import StorageOptions
from nixery.storage.records import TAGS, TAGS_IN_ORDER, RecordStore
from nixery.storage.versions import CONTENT, VERSION, migrate

MANIFEST = Digest.of(b"manifest")
TAGGED = [("a", "1"), ("a", "2"), ("b/c", "latest"), ("z" * 255, "t" * 128)]


def opened(root: Path) -> Storage:
    (root / "temporary").mkdir(exist_ok=True)
    return open_storage(StorageOptions("filesystem", root), root / "temporary", {})


async def put_old(records: RecordStore, tagged: Sequence[tuple[str, str]]) -> None:
    """Write tags as version 1 did."""
    for name, tag in tagged:
        key = sha256(name.encode()).hexdigest() + sha256(tag.encode()).hexdigest()
        record = {"name": name, "tag": tag, "digest": str(MANIFEST)}
        await records.put(TAGS, key, json.dumps(record).encode())


async def count(records: RecordStore, kind: str) -> int:
    return len([listed async for listed in records.scan(kind)])


def test_a_new_storage_has_the_current_version(tmp_path: Path) -> None:
    opened(tmp_path)
    assert (tmp_path / "version").read_bytes() == CONTENT
    opened(tmp_path)


def test_a_storage_of_version_1_has_no_version_before_it_is_migrated(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "sha256" / MANIFEST.hex[:2] / MANIFEST.hex
    blob.parent.mkdir(parents=True)
    blob.touch()
    opened(tmp_path)
    assert not (tmp_path / "version").exists()


def test_a_storage_of_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "version").write_bytes(b"%d\n" % (VERSION + 1))
    with pytest.raises(StorageError, match=rf"version {VERSION + 1}.*upgrade this nixery"):
        opened(tmp_path)
    assert not (tmp_path / "blobs").exists()


@pytest.mark.parametrize("content", [b"", b"two\n", b"-1\n", b"2 3", "²".encode()])
def test_a_storage_with_an_unreadable_version_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "version").write_bytes(content)
    with pytest.raises(StorageError, match="instead of a number"):
        opened(tmp_path)


async def test_a_migration_keeps_all_tags_and_records_the_version(
    driver: FilesystemDriver, records: RecordStore, tmp_path: Path
) -> None:
    await put_old(records, TAGGED)
    await migrate(driver, Catalogue(records))
    assert (tmp_path / "version").read_bytes() == CONTENT
    assert (await count(records, TAGS), await count(records, TAGS_IN_ORDER)) == (0, len(TAGGED))
    assert await Catalogue(records).names("", 10) == sorted({name for name, _ in TAGGED})
    assert await Catalogue(records).tags("a", "", 10) == ["1", "2"]


async def test_listings_are_complete_before_during_and_after_a_migration(
    driver: FilesystemDriver, records: RecordStore
) -> None:
    await put_old(records, TAGGED)
    serving = Catalogue(records)
    await serving.record_tag("a", "3", MANIFEST)
    assert await serving.tags("a", "", 10) == ["1", "2", "3"]
    assert await serving.tags("a", "1", 1) == ["2"]
    seen: list[list[str]] = []
    delete = records.delete

    async def observed(kind: str, key: str) -> None:
        seen.append(await serving.tags("a", "", 10))
        await delete(kind, key)
        seen.append(await serving.tags("a", "", 10))

    records.delete = observed  # type: ignore[method-assign]
    await migrate(driver, serving)
    seen.append(await serving.tags("a", "", 10))
    assert seen == [["1", "2", "3"]] * (2 * len(TAGGED) + 1)


@pytest.mark.parametrize("deletions", range(len(TAGGED) + 1))
async def test_an_interrupted_migration_is_resumed(
    driver: FilesystemDriver, records: RecordStore, tmp_path: Path, deletions: int
) -> None:
    await put_old(records, TAGGED)
    interrupted = RecordStore(driver)
    left, delete = deletions, records.delete

    async def delete_some(kind: str, key: str) -> None:
        nonlocal left
        if left == 0:
            raise StorageError("interrupted")
        left -= 1
        await delete(kind, key)

    interrupted.delete = delete_some  # type: ignore[method-assign]
    if deletions < len(TAGGED):
        with pytest.raises(StorageError, match="interrupted"):
            await migrate(driver, Catalogue(interrupted))
        assert not (tmp_path / "version").exists()
    assert await Catalogue(records).tags("a", "", 10) == ["1", "2"]
    await migrate(driver, Catalogue(records))
    assert (await count(records, TAGS), await count(records, TAGS_IN_ORDER)) == (0, len(TAGGED))


async def test_two_servers_migrate_a_storage_at_once(driver: FilesystemDriver, records: RecordStore) -> None:
    await put_old(records, [(f"name{number}", "latest") for number in range(100)])
    await asyncio.gather(*(migrate(driver, Catalogue(records)) for _ in range(2)))
    assert len(await Catalogue(records).names("", 1000)) == 100
    assert await count(records, TAGS) == 0


async def test_tags_of_a_server_of_the_version_before_are_migrated_at_the_next_start(
    driver: FilesystemDriver, records: RecordStore
) -> None:
    await migrate(driver, Catalogue(records))
    await put_old(records, TAGGED)
    await migrate(driver, Catalogue(records))
    assert await count(records, TAGS_IN_ORDER) == len(TAGGED)


async def test_a_migration_does_not_replace_a_later_version(
    driver: FilesystemDriver, records: RecordStore, tmp_path: Path
) -> None:
    (tmp_path / "version").write_bytes(b"%d\n" % (VERSION + 1))
    with pytest.raises(StorageError, match="a later nixery"):
        await migrate(driver, Catalogue(records))
    assert (tmp_path / "version").read_bytes() == b"%d\n" % (VERSION + 1)
