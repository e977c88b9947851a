import time
from pathlib import Path

import pytest

from nixery.errors import BlobVerificationFailed
from nixery.oci.digest import Digest
from nixery.storage.blobs import BlobStore, StoredFile


async def stored(blobs: BlobStore, digest: Digest) -> StoredFile:
    found = await blobs.find(digest)
    assert isinstance(found, StoredFile)
    return found


def temporary_files(root: Path) -> list[Path]:
    return list((root / "temporary").iterdir())


def write(blobs: BlobStore, content: bytes) -> Digest:
    with blobs.create() as writer:
        writer.write(content)
        return writer.commit().digest


async def test_a_blob_is_found_under_its_digest(blobs: BlobStore, tmp_path: Path) -> None:
    digest = write(blobs, b"content")
    assert digest == Digest.of(b"content")
    found = await stored(blobs, digest)
    assert found.size == 7
    assert await blobs.read(found) == b"content"
    assert found.path == tmp_path / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    assert not temporary_files(tmp_path)


async def test_nothing_is_found_under_an_unknown_digest(blobs: BlobStore) -> None:
    assert await blobs.find(Digest.of(b"never written")) is None


async def test_a_writer_without_a_commit_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    def write_half() -> None:
        with blobs.create() as writer:
            writer.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert await blobs.find(Digest.of(b"half")) is None
    assert not temporary_files(tmp_path)


async def test_storing_a_whole_blob_again_does_not_rewrite_it(blobs: BlobStore) -> None:
    found = await stored(blobs, write(blobs, b"content"))
    before = found.path.stat()
    write(blobs, b"content")
    after = found.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_a_truncated_blob_is_replaced_by_the_next_commit(blobs: BlobStore) -> None:
    found = await stored(blobs, write(blobs, b"content"))
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    write(blobs, b"content")
    assert found.path.read_bytes() == b"content"


async def test_a_reader_keeps_the_file_that_it_opened_when_the_blob_is_replaced(blobs: BlobStore) -> None:
    found = await stored(blobs, write(blobs, b"content"))
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    with found.path.open("rb") as reader:
        write(blobs, b"content")
        assert reader.read() == b"con"


async def test_a_commit_fails_when_the_disk_lost_bytes(blobs: BlobStore, tmp_path: Path) -> None:
    with blobs.create() as writer:
        writer.write(b"content")
        (temporary,) = temporary_files(tmp_path)
        temporary.write_bytes(b"con")
        with pytest.raises(BlobVerificationFailed):
            writer.commit()
    assert await blobs.find(Digest.of(b"content")) is None


async def test_a_blob_without_its_size_or_with_another_one_counts_as_missing(blobs: BlobStore) -> None:
    digest = write(blobs, b"content")
    found = await stored(blobs, digest)
    found.path.chmod(0o644)
    found.path.write_bytes(b"con")
    assert await blobs.find(digest) is None
    found.path.write_bytes(b"content")
    assert await blobs.find(digest) is not None
    found.path.with_name(f"{digest.hex}.size").unlink()
    assert await blobs.find(digest) is None


async def test_putting_a_small_blob_replaces_wrong_bytes_of_the_right_size(blobs: BlobStore) -> None:
    digest = Digest.of(b"content")
    await blobs.put(digest, b"content")
    found = await stored(blobs, digest)
    found.path.chmod(0o644)
    found.path.write_bytes(b"CONTENT")
    await blobs.put(digest, b"content")
    assert found.path.read_bytes() == b"content"


async def test_put_refuses_content_with_another_digest(blobs: BlobStore) -> None:
    with pytest.raises(BlobVerificationFailed):
        await blobs.put(Digest.of(b"a"), b"b")
    await blobs.put(Digest.of(b"a"), b"a")
    assert await blobs.find(Digest.of(b"a")) is not None


async def test_a_scan_lists_every_blob_including_broken_ones(blobs: BlobStore) -> None:
    before = time.time() - 5
    digests = {write(blobs, content) for content in (b"1", b"22", b"333")}
    broken = await stored(blobs, Digest.of(b"333"))
    broken.path.chmod(0o644)
    broken.path.write_bytes(b"3")
    listed = [blob async for blob in blobs.scan()]
    assert {blob.digest for blob in listed} == digests
    assert sorted(blob.size for blob in listed) == [1, 1, 2]
    assert all(before < blob.modified < time.time() + 5 for blob in listed)


async def test_deleting_a_blob_deletes_all_its_files(blobs: BlobStore, tmp_path: Path) -> None:
    digest = write(blobs, b"content")
    await blobs.delete(digest)
    await blobs.delete(digest)
    assert await blobs.find(digest) is None
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
