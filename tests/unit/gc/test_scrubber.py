from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zstandard

from nixery.access.api_tokens import ApiTokens
from nixery.access.registry_tokens import SigningKeys
from nixery.builds.cache_signing import CacheKeys
from nixery.builds.history import BuildReport
from nixery.builds.index_records import StateIndex
from nixery.builds.pins import Term
from nixery.builds.popularity import BATCH, Batch
from nixery.errors import StorageError
from nixery.gc import scrubber
from nixery.gc.records import CHECKS
from nixery.gc.scrubber import Checked, Finding, Scrubber
from nixery.oci.digest import Digest
from nixery.packing.listing import Kept, Listing
from nixery.sources.source import Pin
from nixery.storage.blobs import ListedBlob
from nixery.storage.catalogue import Catalogue, TagRecord
from nixery.storage.records import USES
from tests.unit.gc.conftest import Store, parts


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(path, bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": lambda path: rewrite(path, path.read_bytes()[:2]),
    "emptied": lambda path: rewrite(path, b""),
    "lengthened": lambda path: rewrite(path, path.read_bytes() + b"more"),
    "size lost": lambda path: path.with_name(f"{path.name}.size").unlink(),
    "size torn": lambda path: rewrite(path.with_name(f"{path.name}.size"), b""),
}


async def scrub(store: Store) -> list[Finding]:
    checked = [one async for one in Scrubber(store.blobs, store.records).scrub()]
    return [one.finding for one in checked if one.finding is not None]


def path_of(store: Store, digest: Digest) -> Path:
    return store.directory / "blobs" / "sha256" / digest.hex[:2] / digest.hex


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_blob_is_found_and_quarantined(store: Store, damage: str) -> None:
    image = await store.image(b"a layer", b"another")
    assert await scrub(store) == []
    digest = Digest.of(b"a layer")
    DAMAGES[damage](path_of(store, digest))
    (finding,) = await scrub(store)
    assert finding.what == str(digest)
    assert await store.blobs.find(digest) is None
    assert await store.digests() == parts(image) - {digest}
    assert (store.directory / "quarantine" / digest.hex).exists()
    assert await scrub(store) == []
    await store.layer(b"a layer")
    assert await store.blobs.find(digest) is not None


async def test_a_blob_that_is_deleted_meanwhile_is_not_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.layer(b"a layer")
    find = store.blobs.find

    async def deleted(digest: Digest) -> object:
        await store.blobs.delete(digest)
        return await find(digest)

    monkeypatch.setattr(store.blobs, "find", deleted)
    assert await scrub(store) == []


async def valid_records(store: Store) -> None:
    """One of each kind."""
    image = await store.image(b"a layer")
    digest = image.manifest.descriptor.digest
    catalogue = Catalogue(store.records)
    await catalogue.record_tag("name", "tag", digest)
    await catalogue.record_name("name", "tag", digest)
    await SigningKeys(store.records).current()
    await CacheKeys(store.records).current()
    tokens = ApiTokens(store.records)
    await tokens.verify((await tokens.create("ci", groups=["builders"], expires_in=60))[0])
    contents = {
        "images": b'{"manifest": "%s"}' % str(digest).encode(),
        "evaluations": b"[]",
        "batches": BATCH.dump_json(Batch((), (), (), (), ())),
        "batch-closures": b'{"a": ["b"]}',
        **dict.fromkeys(
            ("builds", "build-progress"),
            BuildReport(id="1", name="git", platform="linux/amd64", revision="a", created=1)
            .model_dump_json()
            .encode(),
        ),
        "packages": StateIndex.listed("ab" * 32, Pin("a", "b", "c"), [((), ["git"])]).encoded(),
        "image-closures": zstandard.compress(b'{"paths": [], "roots": []}'),
        "quota-usage": b'{"first": 0, "events": [[1, "%s", 1, 0]]}' % (b"ab" * 16),
        "package-details": zstandard.compress(b"{}"),
        "substituted-closures": zstandard.compress(b'{"narinfos": []}'),
        "nar-listings": Listing(b"r0", [], Kept()).encode(),
        "pins": b'{"current": %s}' % Term(identity="a", revision="b", until=1).model_dump_json().encode(),
        "referrers": b'{"digest": "%s"}' % str(digest).encode(),
    }
    for kind, content in contents.items():
        await store.records.put(kind, "ab" * 32, content)
    await store.records.put(
        "tags", "ab" * 64, TagRecord(name="a", tag="b", digest=str(digest)).model_dump_json().encode()
    )


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"digest": "sha256:0"}', b"\xff\xfe"])
async def test_torn_records_are_deleted(store: Store, kind: str, content: bytes) -> None:
    await valid_records(store)
    assert await scrub(store) == []
    keys = await store.keys(kind)
    assert keys
    for key in keys:
        rewrite(store.record(kind, key), content)
    findings = await scrub(store)
    assert {finding.what for finding in findings} == {f"{kind}/{key}" for key in keys}
    # The key of a lease names its image: deleting the lease would have an image in use collected.
    assert await store.keys(kind) == (keys if kind == USES else set())
    assert await scrub(store) == []


async def test_the_rate_is_kept_on_average(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.layer(b"x" * 500_000)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    checked: list[Checked] = [one async for one in Scrubber(store.blobs, store.records, 100_000).scrub()]
    assert sum(one.size for one in checked) > 500_000
    # The fake pauses took no time, so the last one covers all of them.
    assert max(pauses) == pytest.approx(5, rel=0.1)


class Unreadable:
    """A store's ``chunks`` when reading fails."""

    def __init__(self, code: int) -> None:
        self.code = code

    async def __call__(self, digest: Digest) -> AsyncIterator[bytes]:
        for chunk in (b"some of it",):
            yield chunk
        raise StorageError(f"cannot read blob {digest}") from OSError(self.code, os.strerror(self.code))


async def test_a_blob_that_the_disk_cannot_read_is_quarantined(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.layer(b"a layer")
    monkeypatch.setattr(store.blobs, "chunks", Unreadable(errno.EIO))
    (finding,) = await scrub(store)
    assert "cannot be read" in finding.reason


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.ESTALE])
async def test_an_error_of_the_machine_is_not_blamed_on_a_blob(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    await store.layer(b"a layer")
    with monkeypatch.context() as patch:
        patch.setattr(store.blobs, "chunks", Unreadable(code))
        with pytest.raises(StorageError, match="cannot read blob"):
            await scrub(store)
    assert await store.blobs.find(Digest.of(b"a layer")) is not None


async def test_the_scrubber_continues_after_an_unexpected_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubber, "_COOLDOWN", 0.01)
    looked = 0

    async def scan() -> AsyncIterator[ListedBlob]:
        nonlocal looked
        looked += 1
        for _ in range(2):
            yield ListedBlob(Digest.of(b"deleted"), 7, 0.0)
        raise KeyError(looked)

    monkeypatch.setattr(store.blobs, "scan", scan)
    running = asyncio.ensure_future(Scrubber(store.blobs, store.records).run())
    async with asyncio.timeout(10):
        while looked < 3:  # noqa: ASYNC110 -- the scrubber has no event to wait for
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
