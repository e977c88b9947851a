"""The directory of a storage, and files that other programs may have put into it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nixery.errors import StorageError
from nixery.files import make_private_directory
from nixery.oci.digest import Digest
from nixery.storage.blobs import QUARANTINED, BlobStore
from nixery.storage.files import make_storage_directory
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore, ordered_key

KEY = "ab" * 32
DIGEST = Digest.of(b"content")


class Opened:
    """A storage in a directory, with another directory beside it that it must not touch."""

    def __init__(self, directory: Path) -> None:
        self.root, self.elsewhere = directory / "storage", directory / "elsewhere"
        make_storage_directory(self.root)
        self.elsewhere.mkdir()
        (self.root / "temporary").mkdir()
        driver = FilesystemDriver(self.root, self.root / "temporary")
        self.blobs = BlobStore(driver)
        self.records = RecordStore(driver)

    @property
    def blob(self) -> Path:
        return self.root / "blobs" / "sha256" / DIGEST.hex[:2] / DIGEST.hex

    @property
    def record(self) -> Path:
        return self.root / "records" / "tags" / KEY[:2] / KEY


@pytest.fixture
async def opened(tmp_path: Path) -> Opened:
    opened = Opened(tmp_path)
    await opened.blobs.put(DIGEST, b"content")
    await opened.records.put("tags", KEY, b"content")
    return opened


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (root, *root.rglob("*"))}


async def test_files_and_directories_are_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened = Opened(tmp_path)
        (opened.root / "temporary").chmod(0o700)
        await opened.blobs.put(DIGEST, b"content")
        with opened.blobs.create() as writer:
            writer.write(b"another")
            writer.commit()
        await opened.records.put("tags", KEY, b"content")
    finally:
        os.umask(before)
    assert modes(opened.root) == {0}


async def test_an_open_storage_directory_is_closed_to_other_users(opened: Opened) -> None:
    for directory in (opened.root, *(path for path in opened.root.iterdir() if path.is_dir())):
        directory.chmod(0o755)
    make_storage_directory(opened.root)
    for directory in (opened.root, *opened.root.iterdir()):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_storage_of_another_user_is_logged_and_left_unchanged(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    opened.root.chmod(0o755)
    with capture_logs() as lines:
        make_storage_directory(opened.root)
    assert {line["directory"] for line in lines} >= {str(opened.root)}
    assert stat.S_IMODE(opened.root.stat().st_mode) == 0o755


def test_the_root_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "storage").symlink_to("disk")
    for _ in range(2):
        make_storage_directory(tmp_path / "storage")
    assert (tmp_path / "disk").is_dir()


def test_a_loop_of_symlinks_as_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").symlink_to("storage")
    with pytest.raises(StorageError, match="lead to each other"):
        make_storage_directory(tmp_path / "storage")


@pytest.mark.parametrize(
    "name",
    ["blobs", "blobs/sha256", f"blobs/sha256/{DIGEST.hex[:2]}", "records", "records/tags", "records/tags/ab"],
)
def test_a_symlink_in_place_of_a_directory_is_refused(opened: Opened, name: str) -> None:
    (opened.root / name).rename(opened.elsewhere / "moved")
    (opened.root / name).symlink_to(opened.elsewhere / "moved")
    with pytest.raises(StorageError, match=name):
        make_storage_directory(opened.root)


@pytest.mark.parametrize("parts", [1, 2, 3])
async def test_a_symlink_in_place_of_a_part_of_a_long_key_is_refused(opened: Opened, parts: int) -> None:
    # Records are written to the last part: a link in place of an earlier one would lead elsewhere.
    await opened.records.put("tags-in-order", "a" * 640, b"content")
    make_storage_directory(opened.root)
    place = opened.root / "records" / "tags-in-order" / "aa" / "/".join(["a" * 200 + "+"] * parts)
    place.rename(opened.elsewhere / "moved")
    place.symlink_to(opened.elsewhere / "moved")
    with pytest.raises(StorageError, match="is a symlink"):
        make_storage_directory(opened.root)


async def test_writes_and_deletions_follow_no_symlinks(opened: Opened) -> None:
    for directory in (opened.blob.parent, opened.record.parent):
        directory.rename(opened.elsewhere / directory.name)
        directory.symlink_to(opened.elsewhere / directory.name)
    before = sorted(opened.elsewhere.rglob("*"))
    with pytest.raises(StorageError):
        await opened.records.put("tags", "ab" + "00", b"content")
    with pytest.raises(StorageError):
        await opened.records.delete("tags", KEY)
    with pytest.raises(StorageError):
        await opened.blobs.delete(DIGEST)
    assert sorted(opened.elsewhere.rglob("*")) == before
    assert [record async for record in opened.records.scan("tags")] == []
    assert [blob async for blob in opened.blobs.scan()] == []


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
async def test_a_record_that_is_not_a_regular_file_counts_as_missing(opened: Opened, what: str) -> None:
    opened.record.unlink()
    plant(opened, opened.record, what)
    assert await opened.records.get("tags", KEY) is None
    assert [record async for record in opened.records.scan("tags")] == []


@pytest.mark.parametrize("what", ["symlink", "fifo"])
async def test_renewing_a_record_replaces_a_symlink_or_fifo(opened: Opened, what: str) -> None:
    """Otherwise the collector would miss leases."""
    opened.record.unlink()
    plant(opened, opened.record, what)
    await opened.records.renew("tags", KEY, b"content")
    assert await opened.records.get("tags", KEY) == b"content"
    assert [record.key async for record in opened.records.scan("tags")] == [KEY]


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("suffix", ["", ".size"])
async def test_a_blob_or_size_that_is_not_a_regular_file_counts_as_missing(
    opened: Opened, what: str, suffix: str
) -> None:
    found = await opened.blobs.find(DIGEST)
    assert found is not None
    place = opened.blob.with_name(opened.blob.name + suffix)
    place.unlink()
    plant(opened, place, what)
    assert await opened.blobs.find(DIGEST) is None
    if not suffix:
        assert await opened.blobs.read(found) is None
        with pytest.raises(StorageError):
            _ = [chunk async for chunk in opened.blobs.stream(found, 0, 6)]
    if what != "directory":
        await opened.blobs.put(DIGEST, b"content")
        assert await opened.blobs.find(DIGEST) == found


def plant(opened: Opened, place: Path, what: str) -> None:
    match what:
        case "symlink":
            (opened.elsewhere / "file").write_bytes(b"content")
            place.symlink_to(opened.elsewhere / "file")
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()


@pytest.mark.parametrize("size", [b"", b"8", b"-7", b"7" * 1000, b"07", b"7\n", b"seven"])
async def test_a_blob_with_a_wrong_size_counts_as_missing_until_it_is_stored_again(
    opened: Opened, size: bytes
) -> None:
    beside = opened.blob.with_name(f"{opened.blob.name}.size")
    beside.unlink()
    beside.write_bytes(size)
    assert await opened.blobs.find(DIGEST) is None
    await opened.blobs.put(DIGEST, b"content")
    assert await opened.blobs.find(DIGEST) is not None


async def test_listings_ignore_foreign_files(opened: Opened) -> None:
    (opened.root / "records" / "tags" / "file").touch()
    (opened.root / "records" / "tags" / "ab" / ("cd" * 32)).touch()
    (opened.root / "records" / "tags" / "ab" / "AB").touch()
    (opened.root / "blobs" / "sha256" / "file").touch()
    assert [record.key async for record in opened.records.scan("tags")] == [KEY]
    assert [blob.digest async for blob in opened.blobs.scan()] == [DIGEST]


async def test_the_quarantine_keeps_the_newest_blobs(opened: Opened) -> None:
    contents = [b"%d" % number for number in range(QUARANTINED + 5)]
    for content in contents:
        await opened.blobs.put(Digest.of(content), content)
        await opened.blobs.quarantine(Digest.of(content))
    kept = {path.name for path in (opened.root / "quarantine").iterdir()}
    assert len(kept) == QUARANTINED
    assert Digest.of(contents[-1]).hex in kept


async def test_deleted_directories_are_recreated(blobs: BlobStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "temporary")
    shutil.rmtree(tmp_path / "blobs")
    await blobs.put(Digest.of(b"content"), b"content")
    assert await blobs.find(Digest.of(b"content")) is not None


LONG, SIBLING = ordered_key(b"z" * 384), ordered_key(b"z" * 383 + b"y")


async def test_records_with_long_keys_leave_no_directories(opened: Opened) -> None:
    fan = opened.root / "records" / "tags-in-order" / LONG[:2]
    for key in (LONG, SIBLING):
        await opened.records.put("tags-in-order", key, b"content")
    await opened.records.delete("tags-in-order", LONG)
    assert await opened.records.get("tags-in-order", SIBLING) == b"content"
    await opened.records.delete("tags-in-order", SIBLING)
    await opened.records.delete("tags-in-order", SIBLING)
    assert list(fan.iterdir()) == []


async def test_a_record_is_written_although_its_directory_is_removed_meanwhile(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make_and_lose(directory: Path) -> None:
        make_private_directory(directory)
        if not made:
            directory.rmdir()
        made.append(directory)

    monkeypatch.setattr("nixery.storage.files.make_private_directory", make_and_lose)
    await opened.records.put("tags-in-order", LONG, b"content")
    assert await opened.records.get("tags-in-order", LONG) == b"content"


async def test_a_temporary_directory_that_cannot_be_created_is_a_storage_error(
    blobs: BlobStore, tmp_path: Path
) -> None:
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").touch()
    with pytest.raises(StorageError, match="cannot write"):
        await blobs.put(Digest.of(b"a"), b"a")


def test_the_error_for_a_file_in_place_of_a_directory_names_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StorageError, match="blobs"):
        FilesystemDriver(tmp_path, tmp_path).make_directories()


@pytest.mark.parametrize("what", ["kind", "fan"])
async def test_a_file_in_place_of_a_directory_is_an_error_and_no_missing_record(
    records: RecordStore, tmp_path: Path, what: str
) -> None:
    obstacle = tmp_path / "records" / "pins" / ("ab" if what == "fan" else "")
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.touch()
    with pytest.raises(StorageError, match="cannot read records/pins"):
        await records.get("pins", KEY)
