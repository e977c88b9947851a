import os
import shutil
import time
from pathlib import Path

import pytest

from nixery.errors import BlobVerificationFailed, StorageError
from nixery.oci.digest import Digest
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def blobs(tmp_path: Path, temporary: Path) -> FilesystemBlobStore:
    return FilesystemBlobStore(tmp_path, temporary)


def temporary_files(root: Path) -> list[Path]:
    return list((root / "temporary").iterdir())


def write(blobs: FilesystemBlobStore, content: bytes) -> Digest:
    with blobs.create() as writer:
        writer.write(content)
        return writer.commit().digest


async def test_a_blob_is_found_under_its_digest(blobs: FilesystemBlobStore, tmp_path: Path) -> None:
    digest = write(blobs, b"content")
    assert digest == Digest.of(b"content")
    found = await blobs.find(digest)
    assert found is not None
    assert found.size == 7
    assert await blobs.read(found) == b"content"
    assert found.path == tmp_path / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    assert not temporary_files(tmp_path)


async def test_nothing_is_found_under_an_unknown_digest(blobs: FilesystemBlobStore) -> None:
    assert await blobs.find(Digest.of(b"never written")) is None


async def test_what_is_not_committed_leaves_nothing(blobs: FilesystemBlobStore, tmp_path: Path) -> None:
    def write_half() -> None:
        with blobs.create() as writer:
            writer.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert await blobs.find(Digest.of(b"half")) is None
    assert not temporary_files(tmp_path)


async def test_a_blob_is_never_rewritten(blobs: FilesystemBlobStore) -> None:
    found = await blobs.find(write(blobs, b"content"))
    assert found is not None
    before = found.path.stat()
    write(blobs, b"content")
    after = found.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_a_fragment_is_replaced(blobs: FilesystemBlobStore) -> None:
    found = await blobs.find(write(blobs, b"content"))
    assert found is not None
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    write(blobs, b"content")
    assert found.path.read_bytes() == b"content"


async def test_a_reader_keeps_what_it_opened(blobs: FilesystemBlobStore) -> None:
    found = await blobs.find(write(blobs, b"content"))
    assert found is not None
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    with found.path.open("rb") as reader:
        write(blobs, b"content")
        assert reader.read() == b"con"


async def test_bytes_that_were_lost_on_the_way_are_noticed(
    blobs: FilesystemBlobStore, tmp_path: Path
) -> None:
    with blobs.create() as writer:
        writer.write(b"content")
        (temporary,) = temporary_files(tmp_path)
        temporary.write_bytes(b"con")
        with pytest.raises(BlobVerificationFailed):
            writer.commit()
    assert await blobs.find(Digest.of(b"content")) is None


async def test_a_blob_of_another_size_is_not_there(blobs: FilesystemBlobStore) -> None:
    digest = write(blobs, b"content")
    found = await blobs.find(digest)
    assert found is not None
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    assert await blobs.find(digest) is None
    found.path.write_bytes(b"content")
    assert await blobs.find(digest) is not None
    found.path.with_name(f"{digest.hex}.size").unlink()
    assert await blobs.find(digest) is None


async def test_a_small_blob_heals_whatever_happened_to_it(blobs: FilesystemBlobStore) -> None:
    digest = Digest.of(b"content")
    await blobs.put(digest, b"content")
    found = await blobs.find(digest)
    assert found is not None
    found.path.chmod(0o644)
    found.path.write_bytes(b"CONTENT")
    await blobs.put(digest, b"content")
    assert found.path.read_bytes() == b"content"


async def test_put_checks_the_digest(blobs: FilesystemBlobStore) -> None:
    with pytest.raises(BlobVerificationFailed):
        await blobs.put(Digest.of(b"a"), b"b")
    await blobs.put(Digest.of(b"a"), b"a")
    assert await blobs.find(Digest.of(b"a")) is not None


async def test_a_directory_that_vanished_is_made_again(blobs: FilesystemBlobStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "temporary")
    shutil.rmtree(tmp_path / "blobs")
    await blobs.put(Digest.of(b"content"), b"content")
    assert await blobs.find(Digest.of(b"content")) is not None


async def test_a_directory_that_cannot_be_made_is_a_storage_error(
    blobs: FilesystemBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").touch()
    with pytest.raises(StorageError, match="cannot write"):
        await blobs.put(Digest.of(b"a"), b"a")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StorageError, match="blobs"):
        FilesystemBlobStore(tmp_path, tmp_path)


async def test_records_are_replaced_as_a_whole(tmp_path: Path, temporary: Path) -> None:
    records = FilesystemRecordStore(tmp_path, temporary)
    assert await records.get("layers", "00ff") is None
    await records.put("layers", "00ff", b"one")
    await records.put("layers", "00ff", b"two")
    assert await records.get("layers", "00ff") == b"two"
    assert await records.get("tags", "00ff") is None
    assert not temporary_files(tmp_path)


async def test_a_listing_has_every_blob_broken_ones_too(blobs: FilesystemBlobStore) -> None:
    before = time.time() - 5
    digests = {write(blobs, content) for content in (b"1", b"22", b"333")}
    broken = await blobs.find(Digest.of(b"333"))
    assert broken is not None
    broken.path.chmod(0o644)
    broken.path.write_bytes(b"3")
    listed = [blob async for blob in blobs.scan()]
    assert {blob.digest for blob in listed} == digests
    assert sorted(blob.size for blob in listed) == [1, 1, 2]
    assert all(before < blob.modified < time.time() + 5 for blob in listed)


async def test_a_deleted_blob_is_gone(blobs: FilesystemBlobStore, tmp_path: Path) -> None:
    digest = write(blobs, b"content")
    await blobs.delete(digest)
    await blobs.delete(digest)
    assert await blobs.find(digest) is None
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


async def test_records_are_listed_by_kind_renewed_and_deleted(tmp_path: Path, temporary: Path) -> None:
    records = FilesystemRecordStore(tmp_path, temporary)
    await records.put("tags", "aa", b"1")
    await records.put("tags", "bb", b"2")
    await records.put("pins", "cc", b"3")
    os.utime(tmp_path / "records" / "tags" / "aa" / "aa", (1, 1))
    assert {record.key: record.modified > 1 async for record in records.scan("tags")} == {
        "aa": False,
        "bb": True,
    }
    await records.renew("tags", "aa", b"1")
    await records.renew("tags", "dd", b"4")
    assert await records.get("tags", "dd") == b"4"
    await records.delete("tags", "bb")
    await records.delete("tags", "bb")
    assert {record.key: record.modified > 1 async for record in records.scan("tags")} == {
        "aa": True,
        "dd": True,
    }
    assert [record async for record in records.scan("builds")] == []
