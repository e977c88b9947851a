import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from nixery.access.api_tokens import ApiTokens
from nixery.access.identity import CredentialsRefused
from nixery.gc.scrubber import Scrubber
from nixery.storage.blobs import ListedBlob, blob_name, size_name
from nixery.storage.copy import copy_storage
from nixery.storage.opening import Storage
from nixery.storage.records import API_TOKEN_USES
from tests.storage_contract.conftest import OpenStorage
from tests.storage_contract.test_blobs import content_of, listed, read, write
from tests.support.object_stores import ObjectStore

KEY = "0" * 64
DISK = ObjectStore({"NIXERY_STORAGE_BACKEND": "filesystem"})


def copy(source: str, target: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nixery", "storage", "copy", source, target]
    return subprocess.run(
        command, env=os.environ | dict(settings), capture_output=True, text=True, timeout=60, check=False
    )


async def holds(storage: Storage, contents: list[bytes]) -> None:
    found = {
        blob.digest: blob
        for blob in [await storage.blobs.find(b.digest) for b in await listed(storage)]
        if blob
    }
    read_back = [await read(storage, blob, 0, blob.size - 1) for blob in found.values()]
    assert sorted(read_back) == sorted(contents)
    assert await storage.records.get("layers", KEY) == b"record"


async def test_a_storage_moves_there_and_back(
    backend: ObjectStore, open_at: OpenStorage, tmp_path: Path
) -> None:
    disk = open_at(DISK)
    contents = [content_of(10, b"1"), content_of(100_000, b"2"), content_of(9_000_000, b"3")]
    for content in contents:
        write(disk, content)
    await disk.records.put("layers", KEY, b"record")
    there = open_at(backend, STORAGE_PATH=str(tmp_path / "there"))
    for copied in (3, 0):
        done = await copy_storage(disk, there, lambda _: None)
        assert (done.copied, done.blobs, done.broken) == (copied, 3, [])
        await holds(open_at(backend, STORAGE_PATH=str(tmp_path / "there")), contents)
    back = open_at(DISK, STORAGE_PATH=str(tmp_path / "back"))
    await copy_storage(there, back, lambda _: None)
    await holds(back, contents)


async def test_api_tokens_are_copied_on_demand(
    backend: ObjectStore, open_at: OpenStorage, tmp_path: Path
) -> None:
    source, target = open_at(backend), open_at(DISK, STORAGE_PATH=str(tmp_path / "target"))
    tokens = ApiTokens(source.records)
    text, created = await tokens.create("ci")
    assert await tokens.verify(text) == created.identity
    await copy_storage(source, target, lambda _: None)
    with pytest.raises(CredentialsRefused):
        await ApiTokens(target.records).verify(text)
    await copy_storage(source, target, lambda _: None, api_tokens=True)
    assert await ApiTokens(target.records).verify(text) == created.identity
    (copied,) = await ApiTokens(target.records).list()
    assert copied.used is not None
    assert [one.finding async for one in Scrubber(target.blobs, target.records).scrub() if one.finding] == []
    assert await tokens.revoke(created.id)
    assert [use.key async for use in source.records.scan(API_TOKEN_USES)] == []
    with pytest.raises(CredentialsRefused):
        await ApiTokens(source.records).verify(text)


@pytest.mark.parametrize("size", [6, 9_000_000])
async def test_a_broken_blob_is_left_out(
    backend: ObjectStore, open_at: OpenStorage, tmp_path: Path, size: int
) -> None:
    source, target = open_at(backend), open_at(DISK, STORAGE_PATH=str(tmp_path / "target"))
    whole, broken = write(source, b"whole"), write(source, content_of(size))
    await source.driver.write(blob_name(broken.digest), bytes(size))
    done = await copy_storage(source, target, lambda _: None)
    assert (done.copied, done.broken) == (1, [broken.digest])
    assert [blob.digest for blob in await listed(target)] == [whole.digest]


async def test_broken_blobs_are_left_out_and_reported(open_at: OpenStorage, tmp_path: Path) -> None:
    disk = open_at(DISK)
    whole, broken = write(disk, b"whole"), write(disk, b"broken")
    await disk.driver.write(blob_name(broken.digest), b"BROKEN")  # of the right size
    ended = copy(f"file://{tmp_path}", f"file://{tmp_path}/other", {})
    assert ended.returncode == 1
    assert str(broken.digest) in ended.stderr
    (found,) = await listed(open_at(DISK, STORAGE_PATH=str(tmp_path / "other")))
    assert found.digest == whole.digest


async def test_a_blob_under_the_name_of_another_leaves_that_one_alone_in_the_target(
    backend: ObjectStore, open_at: OpenStorage, tmp_path: Path
) -> None:
    """A blob that is broken in the source may be intact in the target."""
    disk = open_at(DISK, STORAGE_PATH=str(tmp_path / "source"))
    good, broken = write(disk, content_of(9_000_000)), write(disk, b"broken")
    await disk.driver.write(blob_name(broken.digest), content_of(9_000_000))
    await disk.driver.write(size_name(broken.digest), b"9000000")
    await disk.blobs.delete(good.digest)
    target = open_at(backend, STORAGE_PATH=str(tmp_path / "target"))
    write(target, content_of(9_000_000))
    done = await copy_storage(disk, target, lambda _: None)
    assert (done.copied, done.broken) == (0, [broken.digest])
    assert await target.blobs.find(good.digest) is not None
    assert await target.blobs.find(broken.digest) is None


async def test_a_blob_deleted_meanwhile_is_not_reported_as_broken(
    open_at: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_at(DISK)
    kept, deleted, empty = write(disk, b"kept"), write(disk, b"deleted"), write(disk, b"empty")
    found = await listed(disk)
    await disk.blobs.delete(deleted.digest)
    await disk.driver.write(blob_name(empty.digest), b"")

    async def scan() -> AsyncIterator[ListedBlob]:
        for blob in found:
            yield blob

    monkeypatch.setattr(disk.blobs, "scan", scan)
    done = await copy_storage(disk, open_at(DISK, STORAGE_PATH=str(tmp_path / "other")), lambda _: None)
    assert (done.blobs, done.copied, done.broken) == (2, 1, [empty.digest])
    assert (await listed(open_at(DISK, STORAGE_PATH=str(tmp_path / "other"))))[0].digest == kept.digest


def test_a_misspelt_source_is_not_treated_as_an_empty_storage(tmp_path: Path) -> None:
    ended = copy(f"file://{tmp_path}/typo", f"file://{tmp_path}/other", {})
    assert ended.returncode == 1
    assert f"there is no storage at {tmp_path}/typo" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["ftp://a", "s3:///a", "/var/lib"])
def test_an_invalid_storage_url(url: str, tmp_path: Path) -> None:
    ended = copy(url, f"file://{tmp_path}", {})
    assert ended.returncode == 1
    assert url in ended.stderr
    assert "Traceback" not in ended.stderr
