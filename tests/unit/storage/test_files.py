"""The directory of a storage, and what others may have put into it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.files import make_storage_directory
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore
from nixery.storage.store import QUARANTINED

KEY = "ab" * 32
DIGEST = Digest.of(b"content")


class Opened:
    """A storage in a directory, with another directory beside it that is none of its business."""

    def __init__(self, directory: Path) -> None:
        self.root, self.elsewhere = directory / "storage", directory / "elsewhere"
        make_storage_directory(self.root)
        self.elsewhere.mkdir()
        (self.root / "temporary").mkdir()
        self.blobs = FilesystemBlobStore(self.root, self.root / "temporary")
        self.records = FilesystemRecordStore(self.root, self.root / "temporary")

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


async def test_nothing_is_open_to_others_whatever_the_umask(tmp_path: Path) -> None:
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


async def test_a_storage_that_is_open_to_others_is_closed(opened: Opened) -> None:
    for directory in (opened.root, *(path for path in opened.root.iterdir() if path.is_dir())):
        directory.chmod(0o755)
    make_storage_directory(opened.root)
    for directory in (opened.root, *opened.root.iterdir()):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_storage_of_another_user_is_told(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_root_may_not_be_a_loop(tmp_path: Path) -> None:
    (tmp_path / "storage").symlink_to("storage")
    with pytest.raises(StorageError, match="lead to each other"):
        make_storage_directory(tmp_path / "storage")


@pytest.mark.parametrize(
    "name",
    ["blobs", "blobs/sha256", f"blobs/sha256/{DIGEST.hex[:2]}", "records", "records/tags", "records/tags/ab"],
)
def test_a_symlink_in_the_place_of_a_directory_is_refused(opened: Opened, name: str) -> None:
    (opened.root / name).rename(opened.elsewhere / "moved")
    (opened.root / name).symlink_to(opened.elsewhere / "moved")
    with pytest.raises(StorageError, match=name):
        make_storage_directory(opened.root)


async def test_nothing_is_written_or_deleted_behind_a_symlink(opened: Opened) -> None:
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
async def test_what_is_no_file_is_no_record(opened: Opened, what: str) -> None:
    opened.record.unlink()
    plant(opened, opened.record, what)
    assert await opened.records.get("tags", KEY) is None
    assert [record async for record in opened.records.scan("tags")] == []


@pytest.mark.parametrize("what", ["symlink", "fifo"])
async def test_a_use_is_written_over_what_is_no_file(opened: Opened, what: str) -> None:
    """Whoever claims an image relies on that the collector sees it."""
    opened.record.unlink()
    plant(opened, opened.record, what)
    await opened.records.renew("tags", KEY, b"content")
    assert await opened.records.get("tags", KEY) == b"content"
    assert [record.key async for record in opened.records.scan("tags")] == [KEY]


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("suffix", ["", ".size"])
async def test_what_is_no_file_is_no_blob(opened: Opened, what: str, suffix: str) -> None:
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
async def test_a_wrong_size_beside_a_blob(opened: Opened, size: bytes) -> None:
    beside = opened.blob.with_name(f"{opened.blob.name}.size")
    beside.unlink()
    beside.write_bytes(size)
    assert await opened.blobs.find(DIGEST) is None
    await opened.blobs.put(DIGEST, b"content")
    assert await opened.blobs.find(DIGEST) is not None


async def test_files_where_nothing_of_ours_is_are_passed_over(opened: Opened) -> None:
    (opened.root / "records" / "tags" / "file").touch()
    (opened.root / "records" / "tags" / "ab" / ("cd" * 32)).touch()
    (opened.root / "records" / "tags" / "ab" / "AB").touch()
    (opened.root / "blobs" / "sha256" / "file").touch()
    assert [record.key async for record in opened.records.scan("tags")] == [KEY]
    assert [blob.digest async for blob in opened.blobs.scan()] == [DIGEST]


async def test_a_quarantine_does_not_grow_for_ever(opened: Opened) -> None:
    contents = [b"%d" % number for number in range(QUARANTINED + 5)]
    for content in contents:
        await opened.blobs.put(Digest.of(content), content)
        await opened.blobs.quarantine(Digest.of(content))
    kept = {path.name for path in (opened.root / "quarantine").iterdir()}
    assert len(kept) == QUARANTINED
    assert Digest.of(contents[-1]).hex in kept
