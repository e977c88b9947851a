"""Deleting the blobs that no image in use holds.

An image is in use while there are *leases* on its manifests (``nixery.storage.leases``). A collection keeps
the most recently used images that fit into the limits, whole images at a time, with all blobs that their
manifests hold. It deletes every other blob that is older than the grace period. A blob that was stored,
leased or, as a layer, reused within the grace period is never deleted: a pull in progress may ask for it, or
a build may be about to use it.

**Why no blob in use is deleted.** Other tasks and processes build and pull meanwhile. The collector
*condemns* each batch of blobs in a record before it looks again for leases and reused layers, and then
deletes only blobs that still no image holds. A process that leases an image writes the lease first, then
reads that record, and after that looks for all blobs of the image. Either its lease is written before the
collector's second look, and the collector keeps the image; or it is written after, and then the blobs were
condemned before: the process waits until the batch is done, sees which blobs are missing, and builds them
again, after which they are young. In every order of these steps, it never serves an image whose blobs are
deleted afterwards. Renewing the layers that a build in progress reuses only saves work; the build's own check
at its end guarantees correctness.

**A collection that is interrupted** at any moment leaves garbage and no other damage: a record is deleted
after the blob that it points to, an image counts as stored only if all its blobs are, and a manifest is
served by digest only if its blobs were there when it was leased.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Self

from nixery.errors import CollectionRunning, StorageError, StorageFull
from nixery.gc.marking import Marking, Room
from nixery.gc.records import delete_pointless_records, enforce_bounds
from nixery.oci.digest import Digest
from nixery.storage.blobs import BlobStore, ListedBlob
from nixery.storage.leases import COLLECTION_LEASE
from nixery.storage.records import COLLECTIONS, RecordStore

# Seconds between two renewals of the lock.
_RENEW_EVERY = COLLECTION_LEASE / 6

# Blobs that are condemned at once: processes may have to wait until all of them are deleted.
_BATCH = 4096

# Deletions at the same time: in a bucket, each takes a round trip.
_CONCURRENT = 16

# Seconds by which the clocks of the servers of one storage may differ, if the grace period is not shorter.
_CLOCK_SKEW = 60.0

# Files of a blob: its bytes, and its size.
_FILES = 2

_LOCK_LOST = "lost the collection lock: renewing it took longer than its lease (start the collection again)"


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Limits of a collection. Without any, it keeps every image that was ever used and is not broken.

    Attributes:
        max_age: seconds since the last use; ``None`` for no limit.
        max_size: bytes of all blobs; ``None`` for no limit.
        free: bytes to delete, instead of ``max_size``.
        free_files: files of blobs to delete, in addition to the other limits.
        max_documents: manifests and indexes that were used; ``None`` for no limit.
    """

    max_age: float | None = None
    max_size: int | None = None
    free: int | None = None
    free_files: int | None = None
    max_documents: int | None = None


@dataclass(slots=True)
class GcResult:
    """Results of a collection.

    Attributes:
        deleted: number of blobs.
        deleted_bytes: their size.
        kept: number of blobs.
        kept_bytes: their size.
        records: number of deleted records.
        over: bytes over the limit that were used too recently to delete.
        over_blobs: the same for the number of blobs.
    """

    deleted: int = 0
    deleted_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    records: int = 0
    over: int = 0
    over_blobs: int = 0

    def keep(self, blob: ListedBlob) -> None:
        """Count a blob that is kept."""
        self.kept += 1
        self.kept_bytes += blob.size

    def delete(self, blob: ListedBlob) -> None:
        """Count a deleted blob."""
        self.deleted += 1
        self.deleted_bytes += blob.size


Observe = Callable[[GcResult], None]


class CollectionLock:
    """The record of the kind ``collections`` of one collection; see ``nixery.storage.leases`` for who reads it.

    It is renewed while the context lasts. A record not renewed for ``COLLECTION_LEASE`` seconds belongs to a dead
    process.

    Args:
        records: shared by all.

    Attributes:
        started: when it was acquired, in seconds since the epoch by the storage's clock.

    Raises:
        CollectionRunning: on entering, if another collection is running.
        StorageError: the storage does not answer.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self.started = time.time()
        self._key = secrets.token_hex(16)
        self._content = b""
        self._written = 0.0
        self._renewing: asyncio.Task[None] | None = None
        # One write at a time: a slow renewal that ended after a condemnation would undo it.
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # Written before looking for others, so that of two collections that start together at least one sees
        # the other; if both do, both end.
        await self._write(b"")
        try:
            await self._require_no_other()
        except BaseException:
            await self._delete()
            raise
        self._renewing = asyncio.ensure_future(self._renew())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._delete()

    @property
    def holds(self) -> bool:
        """Whether the lock is still valid for all other processes, with a margin of half its lease."""
        return time.monotonic() - self._written < COLLECTION_LEASE / 2

    async def condemn(self, digests: Iterable[Digest]) -> None:
        """Record the blobs that are about to be deleted, in place of the previous ones.

        On a full storage, neither this nor a lease can be written: the collector then deletes blobs without
        condemning them, or the storage would stay full.

        Raises:
            StorageError: it cannot be written.
        """
        await self._write("\n".join(digest.hex for digest in digests).encode())

    async def _write(self, content: bytes) -> None:
        async with self._writing:
            self._content = content
            # Other processes measure from the time of the write, which may be long before the response.
            begun = time.monotonic()
            with suppress(StorageFull):
                await self._records.put(COLLECTIONS, self._key, content)
            self._written = begun

    async def _require_no_other(self) -> None:
        modified = {listed.key: listed.modified async for listed in self._records.scan(COLLECTIONS)}
        # A full storage did not store it.
        self.started = modified.pop(self._key, self.started)
        for key, renewed in modified.items():
            # A time far in the future is not a collector's, and would block all collections.
            if abs(self.started - renewed) < COLLECTION_LEASE:
                raise CollectionRunning
            await self._records.delete(COLLECTIONS, key)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            async with self._writing:
                begun = time.monotonic()
                with suppress(StorageError):
                    await self._records.renew(COLLECTIONS, self._key, self._content)
                    self._written = begun

    async def _delete(self) -> None:
        with suppress(StorageError):
            await self._records.delete(COLLECTIONS, self._key)


class Collector:
    """Collects garbage.

    Args:
        blobs: of a storage.
        records: of the same storage.
        grace: seconds for which nothing that was stored or used is deleted.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore, grace: float) -> None:
        self._blobs = blobs
        self._records = records
        self._grace = grace

    async def collect(
        self, limits: RetentionPolicy, *, dry_run: bool = False, observe: Observe = lambda _: None
    ) -> GcResult:
        """Delete images beyond the limits, and all blobs that no image holds.

        Args:
            limits: of the images to keep.
            dry_run: delete nothing, and count what a collection would delete.
            observe: called for each blob, with the result so far.

        Raises:
            CollectionRunning: another collection is in progress.
            StorageError: the storage fails; the next collection deletes the rest.
        """
        async with nullcontext() if dry_run else CollectionLock(self._records) as lock:
            return await _Collection(self._blobs, self._records, limits, lock, self._grace, observe).run()


class _Collection:
    """One run, which deletes nothing without a lock."""

    def __init__(
        self,
        blobs: BlobStore,
        records: RecordStore,
        limits: RetentionPolicy,
        lock: CollectionLock | None,
        grace: float,
        observe: Observe,
    ) -> None:
        self._observe = observe
        self._blobs = blobs
        self._records = records
        self._limits = limits
        self._lock = lock
        # By the storage's clock, which dates its contents, if that is known.
        self._now = time.time() if lock is None else lock.started
        self._cutoff = self._now - grace
        self._marking = Marking(blobs, records)
        self._result = GcResult()

    async def run(self) -> GcResult:
        oldest = None if self._limits.max_age is None else self._now - self._limits.max_age
        room = await self._room()
        await self._marking.mark(self._cutoff, oldest, room)
        batch: list[ListedBlob] = []
        async for blob in self._blobs.scan():
            if blob.digest in self._marking.marks or blob.modified > self._cutoff:
                self._keep(blob)
                continue
            batch.append(blob)
            if len(batch) == _BATCH:
                await self._delete(batch)
                batch = []
        await self._delete(batch)
        if self._lock is not None:
            await self._delete_leftovers(self._lock)
            self._result.records = await delete_pointless_records(
                self._records, self._blobs, self._cutoff, oldest
            )
            self._result.records += await enforce_bounds(
                self._records, self._now, low_on_inodes=bool(self._limits.free_files)
            )
        if room.size is not None:
            self._result.over = max(0, self._result.kept_bytes - room.size)
        if room.blobs is not None:
            self._result.over_blobs = max(0, self._result.kept - room.blobs)
        return self._result

    async def _room(self) -> Room:
        """Return the room for images that may be deleted."""
        limits = self._limits
        size, blobs = limits.max_size, None
        if limits.free is not None or limits.free_files is not None:
            stored = count = 0
            async for blob in self._blobs.scan():
                stored += blob.size
                count += 1
            if limits.free is not None:
                size = max(0, stored - limits.free)
            if limits.free_files is not None:
                blobs = max(0, count - math.ceil(limits.free_files / _FILES))
        return Room(size, blobs, limits.max_documents)

    async def _delete(self, batch: Sequence[ListedBlob]) -> None:
        if not batch:
            return
        if self._lock is None:
            for blob in batch:
                self._deleted(blob)
            return
        await self._condemn(self._lock, batch)
        for start in range(0, len(batch), _CONCURRENT):
            if not self._lock.holds:
                raise StorageError(_LOCK_LOST)
            await asyncio.gather(*map(self._delete_blob, batch[start : start + _CONCURRENT]))
        await self._lock.condemn(())

    async def _delete_leftovers(self, lock: CollectionLock) -> None:
        # Of processes that were killed while they stored or deleted a blob. They take little room, but have
        # to be condemned as blobs are: another process may be storing such a blob now.
        leftovers: list[ListedBlob] = []
        async for leftover in self._blobs.scan_leftovers():
            if leftover.modified < self._cutoff:
                leftovers.append(leftover)
            if len(leftovers) == _BATCH:
                break  # the next collection deletes the rest
        if not leftovers:
            return
        await self._condemn(lock, leftovers)
        for leftover in leftovers:
            if not lock.holds:
                raise StorageError(_LOCK_LOST)
            if leftover.digest not in self._marking.marks:
                await self._blobs.delete(leftover.digest)
        await lock.condemn(())

    async def _condemn(self, lock: CollectionLock, batch: Sequence[ListedBlob]) -> None:
        await lock.condemn(blob.digest for blob in batch)
        await self._marking.look_again(max(self._cutoff, self._now - _CLOCK_SKEW))

    async def _delete_blob(self, blob: ListedBlob) -> None:
        if blob.digest in self._marking.marks:
            self._keep(blob)
            return
        await self._blobs.delete(blob.digest)
        self._deleted(blob)

    def _keep(self, blob: ListedBlob) -> None:
        self._result.keep(blob)
        self._observe(self._result)

    def _deleted(self, blob: ListedBlob) -> None:
        self._result.delete(blob)
        self._observe(self._result)
