"""Collecting and scrubbing, on every backend."""

from __future__ import annotations

import asyncio

import pytest

from nixery.builds.image import Image
from nixery.builds.layers import LayerRecord
from nixery.errors import CollectionRunning
from nixery.gc.collector import CollectionLock, Collector, RetentionPolicy
from nixery.gc.records import CHECKS
from nixery.gc.scrubber import Finding, Scrubber
from nixery.image.platform import ARM64
from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Descriptor,
    ExecutionParameters,
    Layer,
    MediaType,
    docker_manifest,
    image_config,
    image_manifest,
)
from nixery.storage.blobs import are_there, blob_name
from nixery.storage.copy import COPIED
from nixery.storage.leases import Leases
from nixery.storage.opening import Storage
from nixery.storage.records import (
    API_TOKEN_USES,
    API_TOKENS,
    BUILD_PROGRESS,
    CACHE_KEYS,
    COLLECTIONS,
    LAYERS,
    QUOTA_USAGE,
    SIGNING_KEYS,
    USES,
    RecordStore,
)
from tests.storage_contract.conftest import OpenStorage
from tests.storage_contract.test_blobs import listed
from tests.support.object_stores import ObjectStore

# Seconds of grace, and until it is over. No test can set a storage's times, and a bucket's have whole
# seconds: a stored object may look a second older than it is, and the collection a second younger.
GRACE = 3.0
AGED = 4.5


async def store_layer(storage: Storage, content: bytes) -> Layer:
    digest = Digest.of(content)
    await storage.blobs.put(digest, content)
    record = LayerRecord(digest=str(digest), size=len(content), diff_id=str(Digest.of(b"")))
    await storage.records.put(LAYERS, digest.hex, record.model_dump_json().encode())
    return Layer(Descriptor(MediaType.OCI_LAYER_GZIP, digest, len(content)), Digest.of(b""), ())


async def store_image(storage: Storage, *contents: bytes) -> Image:
    """Store an image as a build does, with its claims."""
    layers = [await store_layer(storage, content) for content in contents]
    config = image_config(ARM64.architecture, ExecutionParameters((), ()), layers)
    image = Image(image_manifest(config, layers), docker_manifest(config, layers))
    for document in (config, *image.manifests):
        await storage.blobs.put(document.descriptor.digest, document.content)
    await Leases(storage.records, GRACE).acquire(image.digests)
    return image


async def keys(records: RecordStore, kind: str) -> set[str]:
    return {record.key async for record in records.scan(kind)}


async def scrub(storage: Storage) -> list[Finding]:
    checked = [one async for one in Scrubber(storage.blobs, storage.records).scrub()]
    return [one.finding for one in checked if one.finding is not None]


async def test_unreferenced_blobs_are_deleted_and_images_are_kept(
    backend: ObjectStore, open_at: OpenStorage
) -> None:
    server, storage = open_at(backend), open_at(backend)
    image = await store_image(server, b"a layer", b"another")
    loose = (await store_layer(server, b"loose")).descriptor.digest
    assert await server.blobs.find(loose) is not None
    collector = Collector(storage.blobs, storage.records, GRACE)
    await asyncio.sleep(AGED)
    would = await collector.collect(RetentionPolicy(), dry_run=True)
    assert (would.deleted, would.records) == (1, 0)
    assert await server.blobs.find(loose) is not None
    young = (await store_layer(server, b"of a build in progress")).descriptor.digest
    result = await collector.collect(RetentionPolicy())
    assert (result.deleted, result.deleted_bytes) == (1, len(b"loose"))
    parts = {digest for digest, _ in image.parts}
    assert {blob.digest for blob in await listed(storage)} == {*parts, young}
    assert await are_there(server.blobs, image.parts)
    assert await server.blobs.find(loose) is None
    assert loose.hex not in await keys(storage.records, LAYERS)
    assert await keys(storage.records, COLLECTIONS) == set()


async def test_unused_images_are_deleted_as_a_whole(backend: ObjectStore, open_at: OpenStorage) -> None:
    server, storage = open_at(backend), open_at(backend)
    old = await store_image(server, b"shared", b"of the old one")
    new = await store_image(server, b"shared", b"of the new one")
    assert await are_there(server.blobs, old.parts)
    await asyncio.sleep(AGED)
    await Leases(server.records, GRACE).acquire(new.digests)
    await Collector(storage.blobs, storage.records, GRACE).collect(RetentionPolicy(max_size=0))
    assert {blob.digest for blob in await listed(storage)} == {digest for digest, _ in new.parts}
    # A server that has just sent the old image must not consider it complete: it would serve an image with
    # deleted layers.
    assert not await are_there(server.blobs, old.parts)
    assert await are_there(server.blobs, new.parts)
    assert await keys(storage.records, USES) == {digest.hex for digest in new.digests}


async def test_what_is_left_of_a_blob_goes(backend: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(backend)
    digest = (await store_layer(storage, b"whose blob goes alone")).descriptor.digest
    image = await store_image(storage, b"a layer")
    assert [blob.digest async for blob in storage.blobs.scan_leftovers()] == []
    await storage.driver.delete(blob_name(digest))
    assert [blob.digest async for blob in storage.blobs.scan_leftovers()] == [digest]
    await asyncio.sleep(AGED)
    await Collector(storage.blobs, storage.records, GRACE).collect(RetentionPolicy())
    assert [blob.digest async for blob in storage.blobs.scan_leftovers()] == []
    assert await are_there(storage.blobs, image.parts)


async def test_a_broken_blob_is_found_and_put_out_of_the_way(
    backend: ObjectStore, open_at: OpenStorage
) -> None:
    storage = open_at(backend)
    image = await store_image(storage, b"a layer", b"another")
    await storage.records.put(LAYERS, "ab" * 32, b"torn")
    (torn,) = await scrub(storage)
    assert torn.what == f"{LAYERS}/{'ab' * 32}"
    digest = Digest.of(b"a layer")
    await storage.driver.write(blob_name(digest), b"a lawyer"[:7])
    (finding,) = await scrub(storage)
    assert finding.what == str(digest)
    assert await storage.blobs.find(digest) is None
    assert {blob.digest for blob in await listed(storage)} == {d for d, _ in image.parts} - {digest}
    assert await quarantined(storage, digest) == b"a lawye"
    assert await scrub(storage) == []
    await store_layer(storage, b"a layer")
    assert await storage.blobs.find(digest) is not None


async def test_a_quarantine_does_not_grow_for_ever(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.storage.blobs.QUARANTINED", 2)
    digests = [(await store_layer(storage, b"%d" % number)).descriptor.digest for number in range(4)]
    for digest in digests:
        await storage.blobs.quarantine(digest)
    assert await quarantined(storage, digests[-1]) == b"3"
    kept = [await quarantined(storage, digest) for digest in digests]
    assert len([content for content in kept if content is not None]) == 2


async def quarantined(storage: Storage, digest: Digest) -> bytes | None:
    return await storage.driver.read(f"quarantine/{digest.hex}", 100)


def test_all_kinds_of_records_are_copied() -> None:
    # Builds that are running are those of the source's servers, as are the keys and the use of quotas; API tokens are
    # copied on demand.
    left = {BUILD_PROGRESS, API_TOKENS, API_TOKEN_USES, SIGNING_KEYS, CACHE_KEYS, QUOTA_USAGE}
    assert set(COPIED) == set(CHECKS) - left


async def test_one_collection_at_a_time(backend: ObjectStore, open_at: OpenStorage) -> None:
    storage, other = open_at(backend), open_at(backend)
    await store_image(storage, b"a layer")
    async with CollectionLock(other.records):
        with pytest.raises(CollectionRunning):
            await Collector(storage.blobs, storage.records, GRACE).collect(RetentionPolicy())
    await Collector(storage.blobs, storage.records, GRACE).collect(RetentionPolicy())
    assert await keys(storage.records, COLLECTIONS) == set()
