from __future__ import annotations

import asyncio
import json

import pytest

from nixery.builds.build_cache import ImageRecord
from nixery.errors import CollectionRunning, StorageError
from nixery.gc import collector
from nixery.gc.collector import CollectionLock, Collector, RetentionPolicy
from nixery.gc.marking import Marking
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.oci.documents import MediaType, image_index
from nixery.storage.blobs import size_name
from nixery.storage.leases import COLLECTION_LEASE, Leases
from nixery.storage.records import COLLECTIONS, USES
from tests.unit.gc.conftest import DAY, HOUR, CollectionReads, Store, parts


async def test_an_image_in_use_is_kept(store: Store) -> None:
    image = await store.image(b"one", b"two")
    store.age(10 * DAY)
    result = await store.collect()
    assert await store.digests() == parts(image)
    assert (result.deleted, result.kept) == (0, 5)


async def test_a_blob_that_no_manifest_holds_is_deleted_after_the_grace_period(store: Store) -> None:
    image = await store.image(b"one")
    await store.layer(b"garbage")
    await store.collect()
    assert Digest.of(b"garbage") in await store.digests()
    store.age(2 * HOUR)
    result = await store.collect()
    assert await store.digests() == parts(image)
    assert (result.deleted, result.deleted_bytes) == (1, len(b"garbage"))
    assert await store.keys("layers") == {Digest.of(b"one").hex}


async def test_a_size_without_a_blob_is_deleted_after_the_grace_period(store: Store) -> None:
    image = await store.image(b"one")
    lost, held = Digest.of(b"never stored as a whole"), image.manifest.descriptor.digest
    beside = [store.directory / size_name(digest) for digest in (lost, held)]
    beside[0].parent.mkdir(exist_ok=True)
    beside[0].write_bytes(b"23")
    await store.collect()
    assert beside[0].exists()
    store.age(2 * HOUR)
    await store.collect(dry_run=True)
    assert beside[0].exists()
    result = await store.collect()
    assert [path.exists() for path in beside] == [False, True]
    assert (result.deleted, result.kept) == (0, len(parts(image)))
    assert await store.digests() == parts(image)


async def test_a_shared_layer_is_deleted_with_its_last_image(store: Store) -> None:
    old, new = await store.image(b"shared", b"old"), await store.image(b"shared", b"new")
    store.age(10 * DAY)
    await store.use(new, ago=2 * DAY)
    result = await store.collect(RetentionPolicy(max_age=7 * DAY))
    assert await store.digests() == parts(new)
    assert result.deleted == len(parts(old) - parts(new))
    assert await store.keys(USES) == {digest.hex for digest in new.digests}
    store.age(10 * DAY)
    await store.collect(RetentionPolicy(max_age=7 * DAY))
    assert await store.digests() == set()
    for kind in (USES, "layers"):
        assert await store.keys(kind) == set()


async def test_the_least_recently_used_images_are_deleted_until_the_rest_fits(store: Store) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(4)]
    store.age(10 * DAY)
    for days, number in enumerate([2, 0, 3, 1]):
        await store.use(images[number], ago=(days + 1) * DAY)
    result = await store.collect(RetentionPolicy(max_size=25_000))
    assert await store.digests() == parts(images[2], images[0])
    assert result.kept_bytes <= 25_000
    assert result.over == 0


async def test_a_collection_frees_a_number_of_bytes(store: Store) -> None:
    images = [await store.image(b"%d" % number * 10_000) for number in range(3)]
    store.age(10 * DAY)
    for days, image in enumerate(images):
        await store.use(image, ago=(days + 1) * DAY)
    result = await store.collect(RetentionPolicy(free=1))
    assert await store.digests() == parts(images[0], images[1])
    assert result.deleted_bytes >= 1


async def test_an_image_used_within_the_grace_period_is_kept_under_any_limits(store: Store) -> None:
    image = await store.image(b"one")
    store.age(10 * DAY)
    await store.use(image, ago=HOUR / 2)
    result = await store.collect(RetentionPolicy(max_age=0, max_size=0))
    assert await store.digests() == parts(image)
    assert result.over == result.kept_bytes > 0


async def test_a_manifest_used_by_digest_holds_its_image(store: Store) -> None:
    image = await store.image(b"one")
    store.age(10 * DAY)
    await store.records.renew(USES, image.manifest.descriptor.digest.hex, b"{}")
    await store.collect(RetentionPolicy(max_age=DAY))
    assert await store.digests() == parts(image)


async def test_an_index_holds_its_images(store: Store) -> None:
    image = await store.image(b"one")
    index = image_index(MediaType.OCI_INDEX, [(AMD64.architecture, image.manifest)])
    await store.blobs.put(index.descriptor.digest, index.content)
    store.age(10 * DAY)
    await store.leases.acquire([index.descriptor.digest])
    await store.collect(RetentionPolicy(max_age=DAY))
    assert image.docker_manifest is not None
    assert await store.digests() == {*parts(image), index.descriptor.digest} - {
        image.docker_manifest.descriptor.digest
    }


async def test_an_attached_manifest_is_kept_as_long_as_its_subject(store: Store) -> None:
    image, attached = await store.image(b"one"), await store.image(b"signature")
    digest = attached.manifest.descriptor.digest
    key = image.manifest.descriptor.digest.hex + digest.hex
    await store.records.put("referrers", key, json.dumps({"digest": str(digest)}).encode())
    store.age(10 * DAY)
    await store.use(image)
    await store.collect(RetentionPolicy(max_age=DAY))
    assert {digest, Digest.of(b"signature")} <= await store.digests()
    assert await store.keys("referrers") == {key}
    store.age(10 * DAY)
    await store.collect(RetentionPolicy(max_age=DAY))
    assert (await store.digests(), await store.keys("referrers")) == (set(), set())


async def test_an_image_without_a_lease_is_kept_by_its_record(store: Store) -> None:
    image = await store.image(b"one")
    for key in await store.keys(USES):
        await store.records.delete(USES, key)
    record = ImageRecord(manifest=str(image.manifest.descriptor.digest))
    await store.records.put("images", "ab" * 32, record.model_dump_json().encode())
    store.age(2 * DAY)
    await store.collect(RetentionPolicy(max_age=7 * DAY))
    assert image.manifest.descriptor.digest in await store.digests()
    store.age(7 * DAY)
    await store.collect(RetentionPolicy(max_age=7 * DAY))
    assert (await store.digests(), await store.keys("images")) == (set(), set())


async def test_a_layer_that_a_build_reused_is_kept(store: Store) -> None:
    layer = await store.layer(b"layer")
    store.age(10 * DAY)
    key = layer.descriptor.digest.hex
    await store.records.renew("layers", key, b"never written")
    await store.collect(RetentionPolicy(max_age=0, max_size=0))
    assert await store.digests() == {layer.descriptor.digest}


async def test_tags_pins_and_evaluations_are_deleted_by_age(store: Store) -> None:
    for kind in ("tags", "pins", "evaluations"):
        await store.records.put(kind, "ab" * 32, b"{}")
    store.age(10 * DAY)
    for kind in ("tags", "pins", "evaluations"):
        await store.records.put(kind, "cd" * 32, b"{}")
    await store.collect()
    assert await store.keys("tags") == {"ab" * 32, "cd" * 32}
    result = await store.collect(RetentionPolicy(max_age=DAY))
    for kind in ("tags", "pins", "evaluations"):
        assert await store.keys(kind) == {"cd" * 32}
    assert result.records == 3


async def test_a_dry_run_deletes_nothing(store: Store) -> None:
    image = await store.image(b"one")
    store.age(10 * DAY)
    result = await store.collect(RetentionPolicy(max_age=DAY), dry_run=True)
    assert result.deleted == len(parts(image))
    assert await store.digests() == parts(image)
    assert await store.keys(USES) == {digest.hex for digest in image.digests}


async def test_a_second_collection_is_refused(store: Store) -> None:
    async with CollectionLock(store.records):
        with pytest.raises(CollectionRunning):
            await store.collect()
    await store.collect()
    assert await store.keys(COLLECTIONS) == set()


async def test_the_lock_of_a_dead_collector_is_deleted(store: Store) -> None:
    await store.records.put(COLLECTIONS, "ab" * 16, b"")
    store.age(COLLECTION_LEASE + 1)
    await store.collect()
    assert await store.keys(COLLECTIONS) == set()


async def test_a_killed_collector_delays_a_condemned_image_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = CollectionReads(store.records, monkeypatch)
    image = await store.image(b"one")
    await store.records.put(COLLECTIONS, "dead", "\n".join(digest.hex for digest in image.digests).encode())
    now = 0.0
    leases = Leases(store.records, HOUR, lambda: now)
    waiting = asyncio.ensure_future(leases.acquire(image.digests))
    await reads.wait()
    assert not waiting.done()
    now = COLLECTION_LEASE + 1
    await waiting
    # The leases remember that it is dead: this test's clock does not advance.
    await asyncio.wait_for(leases.acquire(image.digests), 30)
    # A collector that writes is not dead.
    await store.records.put(COLLECTIONS, "dead", image.digests[0].hex.encode())
    waiting = asyncio.ensure_future(leases.acquire(image.digests))
    await reads.wait()
    assert not waiting.done()
    await store.records.delete(COLLECTIONS, "dead")
    await waiting


async def test_a_pull_that_takes_longer_than_the_grace_period_keeps_its_image(store: Store) -> None:
    now = 0.0
    leases = Leases(store.records, HOUR, lambda: now)
    image, other = await store.image(b"first", b"last"), await store.image(b"other")
    for one in (image, other):
        await leases.acquire(one.digests, parts(one))
    for _ in range(6):
        now += HOUR / 3
        store.age(HOUR / 3)
        leases.renew_holding(Digest.of(b"first"))
        leases.renew_holding(Digest.of(b"of nothing that is known"))
        await leases.close()
    await store.collect(RetentionPolicy(max_size=0))
    assert await store.digests() == parts(image)
    # A client that comes back later may miss blobs, so the lease counts as expired.
    now += HOUR
    leases.renew_holding(Digest.of(b"first"))
    assert not leases.renew(image.digests)


async def test_a_short_grace_period_ends_in_time(store: Store) -> None:
    await store.image(b"one")
    store.age(10)
    result = await Collector(store.blobs, store.records, 5.0).collect(RetentionPolicy(max_size=0))
    assert (result.kept, await store.digests()) == (0, set())


async def test_a_collector_that_lost_its_lock_deletes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = await store.layer(b"garbage")
    store.age(10 * DAY)
    monkeypatch.setattr(CollectionLock, "holds", False)
    with pytest.raises(StorageError, match="lost the collection lock"):
        await store.collect()
    assert await store.digests() == {layer.descriptor.digest}


@pytest.mark.parametrize("deletions", range(6))
async def test_an_interrupted_collection_leaves_garbage_and_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """After any number of deletions, images in use are whole, and the next collection deletes the rest."""
    used, unused = await store.image(b"one", b"shared"), await store.image(b"two", b"shared")
    store.age(10 * DAY)
    await store.use(used)
    monkeypatch.setattr(collector, "_CONCURRENT", 1)
    left = deletions
    delete = store.blobs.delete

    async def delete_some(digest: Digest) -> None:
        nonlocal left
        if left == 0:
            raise StorageError("interrupted")
        left -= 1
        await delete(digest)

    monkeypatch.setattr(store.blobs, "delete", delete_some)
    if deletions < len(parts(unused) - parts(used)):
        with pytest.raises(StorageError, match="interrupted"):
            await store.collect(RetentionPolicy(max_age=DAY))
    monkeypatch.setattr(store.blobs, "delete", delete)
    assert parts(used) <= await store.digests()
    await store.collect(RetentionPolicy(max_age=DAY))
    assert await store.digests() == parts(used)
    assert await store.keys(USES) == {digest.hex for digest in used.digests}


class Gate:
    """Stops a collector before it deletes its first blob, or before its second scan for leases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        owner, name = {
            "condemn": (CollectionLock, "condemn"),
            "look again": (Marking, "look_again"),
            "delete": (collector._Collection, "_delete_blob"),
        }[point]
        original = getattr(owner, name)

        async def wait(*arguments: object) -> None:
            self.reached.set()
            await self.open.wait()
            await original(*arguments)

        monkeypatch.setattr(owner, name, wait)


@pytest.mark.parametrize("point", ["condemn", "look again"])
async def test_an_image_leased_before_the_second_scan_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    image = await store.image(b"one", b"two")
    store.age(10 * DAY)
    gate = Gate(monkeypatch, point)
    collecting = asyncio.ensure_future(store.collect(RetentionPolicy(max_age=DAY)))
    await gate.reached.wait()
    reads = CollectionReads(store.records, monkeypatch)
    acquiring = asyncio.ensure_future(Leases(store.records, HOUR).acquire(image.digests, parts(image)))
    await reads.wait(times=1)  # the lease was written before
    gate.open.set()
    await collecting
    await acquiring
    assert await store.digests() == parts(image)


async def test_a_lease_after_the_second_scan_waits_until_the_image_is_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await store.image(b"one", b"two")
    store.age(10 * DAY)
    gate = Gate(monkeypatch, "delete")
    collecting = asyncio.ensure_future(store.collect(RetentionPolicy(max_age=DAY)))
    await gate.reached.wait()
    reads = CollectionReads(store.records, monkeypatch)
    acquiring = asyncio.ensure_future(Leases(store.records, HOUR).acquire(image.digests, parts(image)))
    await reads.wait()
    assert not acquiring.done()
    gate.open.set()
    await acquiring
    assert not parts(image) & await store.digests()
    await collecting


async def test_a_lease_on_another_image_does_not_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.layer(b"garbage")
    store.age(10 * DAY)
    gate = Gate(monkeypatch, "delete")
    collecting = asyncio.ensure_future(store.collect())
    await gate.reached.wait()
    other = await store.image(b"other")
    await Leases(store.records, HOUR).acquire(other.digests, parts(other))
    gate.open.set()
    await collecting


async def test_a_slow_renewal_does_not_undo_a_condemnation(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "_RENEW_EVERY", 0.01)
    digest = Digest.of(b"condemned")
    renew, begun, ended = store.records.renew, asyncio.Event(), asyncio.Event()

    async def slowly(kind: str, key: str, content: bytes) -> None:
        """As in a bucket: the write that was requested first completes last."""
        begun.set()
        await asyncio.sleep(0.1)
        await renew(kind, key, content)
        await store.records.put(kind, key, content)
        ended.set()

    monkeypatch.setattr(store.records, "renew", slowly)
    async with CollectionLock(store.records) as held:
        await begun.wait()
        await held.condemn([digest])
        await ended.wait()
        (record,) = [listed.key async for listed in store.records.scan(COLLECTIONS)]
        assert await store.records.get(COLLECTIONS, record) == digest.hex.encode()
