"""One collection at a time, and what it is about to delete: a record that others look at.

Deleting what nobody uses any more.

An image is in use as long as its manifests are *claimed* (``nixery.storage.uses``); those used last stay, whole images at a time,
and with them whatever their manifests hold. What no manifest holds goes, if it is older than the grace period. Nothing that was
stored, claimed or, as a layer, reused within the grace period is ever deleted: neither what a pull in progress asks for nor what
a build has made so far.

**Why nothing is missed.** Others go on building and pulling, in this process and elsewhere. Each batch is *condemned* in a record before
the collector looks once more for claims and reused layers, and only what nobody holds then is deleted. Whoever claims an image
does it before he looks at that record and, after that, for all blobs of the image. Either his claim comes before the
collector's second look, and nothing of the image is deleted; or it comes after, and then the blobs were condemned before: he waits
for the batch to be over, sees what is missing, and builds it again, from which on it is young. No order of steps is left in which he
answers with an image whose blobs go. Layers that a build in progress reuses are renewed for economy alone; the build's own look at its end
is what counts.

**Interrupted at any moment** it leaves garbage and no more: a record goes after what it points to, an image is believed only if all
of it is there, and a manifest is answered by digest only if its blobs were there when it was claimed.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Self

from nixery.errors import CollectionRunning, StorageError, StorageFull
from nixery.gc.marking import Marking, delete_pointless_records, enforce_bounds
from nixery.gc.policy import GcResult, RetentionPolicy, Room
from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore, ListedBlob, RecordStore
from nixery.storage.uses import COLLECTIONS, LEASE

_RENEWED_EVERY = LEASE / 6


class CollectionLock:
    """The record of the kind ``collections`` of one collection; see ``nixery.storage.uses`` for who reads it.

    It is renewed as long as the context lasts. One that has not been for ``LEASE`` seconds is of a dead process.

    Args:
        records: shared by all.

    Attributes:
        started: when it was taken, in seconds since the epoch by the storage's clock.

    Raises:
        CollectionRunning: on entering; there is another one.
        StorageError: the storage cannot be asked.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self.started = time.time()
        self._key = secrets.token_hex(16)
        self._content = b""
        self._written = 0.0
        self._renewing: asyncio.Task[None] | None = None
        # One write after the other: a slow renewal that ended after a condemnation would take that back.
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # Written first and looked around after, so that of two at the same time at least one sees the other; perhaps both, and both
        # give way.
        await self._write(b"")
        try:
            await self._look_for_others()
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
        """Whether everybody else believes in it still, with a good margin."""
        return time.monotonic() - self._written < LEASE / 2

    async def condemn(self, digests: Iterable[Digest]) -> None:
        """Say what is going to be deleted; nothing takes it back.

        Where there is no room to say it, no claim can be written either: then what was not used within the grace period goes unsaid,
        rather than that a full disk stays full.

        Raises:
            StorageError: it cannot be written.
        """
        await self._write("\n".join(digest.hex for digest in digests).encode())

    async def _write(self, content: bytes) -> None:
        async with self._writing:
            self._content = content
            # Others count from when it was written, which may be long before we are told.
            begun = time.monotonic()
            with suppress(StorageFull):
                await self._records.put(COLLECTIONS, self._key, content)
            self._written = begun

    async def _look_for_others(self) -> None:
        modified = {listed.key: listed.modified async for listed in self._records.scan(COLLECTIONS)}
        # A storage without room has not taken it.
        self.started = modified.pop(self._key, self.started)
        for key, renewed in modified.items():
            # A time far in the future is not a collector's: it would block all others for ever.
            if abs(self.started - renewed) < LEASE:
                raise CollectionRunning
            await self._records.delete(COLLECTIONS, key)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWED_EVERY)
            async with self._writing:
                begun = time.monotonic()
                with suppress(StorageError):
                    await self._records.renew(COLLECTIONS, self._key, self._content)
                    self._written = begun

    async def _delete(self) -> None:
        with suppress(StorageError):
            await self._records.delete(COLLECTIONS, self._key)


# Blobs that are condemned at once: others may have to wait until all of them are deleted.
_BATCH = 4096

# Deletions under way at the same time; an object store takes its time for each.
_AT_ONCE = 16

# Seconds by which the clocks of the servers of one storage may differ, as far as the grace period is not shorter.
_SKEW = 60.0

# Files of a blob: its bytes, and its size.
_FILES = 2

_LEASE_LOST = "the collection could not be kept known to others in time; start it again"


Observe = Callable[[GcResult], None]


class Collector:
    """Collects garbage.

    Args:
        blobs: the store.
        records: what is known of it.
        grace: seconds for which nothing that was stored or used is deleted.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore, grace: float) -> None:
        self._blobs = blobs
        self._records = records
        self._grace = grace

    async def collect(
        self, limits: RetentionPolicy, *, dry_run: bool = False, observe: Observe = lambda _: None
    ) -> GcResult:
        """Delete what the limits leave no room for, and everything that nothing holds.

        Args:
            limits: what may stay.
            dry_run: delete nothing, and say what would go.
            observe: called for each blob that stays or goes, with what is also returned.

        Raises:
            CollectionRunning: there is another one.
            StorageError: the storage does not do what is asked; what was not deleted is garbage still.
        """
        async with nullcontext() if dry_run else CollectionLock(self._records) as lease:
            collection = _Collection(self._blobs, self._records, limits, lease, self._grace)
            collection.observe = observe
            return await collection.run()


class _Collection:
    """One run, which deletes nothing without a lease."""

    observe: Observe

    def __init__(
        self,
        blobs: BlobStore,
        records: RecordStore,
        limits: RetentionPolicy,
        lease: CollectionLock | None,
        grace: float,
    ) -> None:
        self._blobs = blobs
        self._records = records
        self._limits = limits
        self._lease = lease
        # By the storage's clock where it was asked: that is the one by which everything else is dated.
        self._now = time.time() if lease is None else lease.started
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
        if self._lease is not None:
            await self._delete_leftovers(self._lease)
            self._result.records = await delete_pointless_records(
                self._records, self._blobs, self._cutoff, oldest
            )
            self._result.records += await enforce_bounds(
                self._records, self._now, short_of_files=bool(self._limits.free_files)
            )
        if room.size is not None:
            self._result.over = max(0, self._result.kept_bytes - room.size)
        if room.blobs is not None:
            self._result.over_blobs = max(0, self._result.kept - room.blobs)
        return self._result

    async def _room(self) -> Room:
        """Return the remaining room."""
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
        if self._lease is None:
            for blob in batch:
                self._deleted(blob)
            return
        await self._condemn(self._lease, batch)
        for start in range(0, len(batch), _AT_ONCE):
            if not self._lease.holds:
                raise StorageError(_LEASE_LOST)
            await asyncio.gather(*map(self._delete_blob, batch[start : start + _AT_ONCE]))
        await self._lease.condemn(())

    async def _delete_leftovers(self, lease: CollectionLock) -> None:
        # Of somebody who was killed while he stored a blob, or deleted it. They take no room worth counting, but have to be condemned
        # as blobs are, for somebody may store such a blob now.
        leftovers: list[ListedBlob] = []
        async for leftover in self._blobs.scan_leftovers():
            if leftover.modified < self._cutoff:
                leftovers.append(leftover)
            if len(leftovers) == _BATCH:
                break  # the next collection goes on
        if not leftovers:
            return
        await self._condemn(lease, leftovers)
        for leftover in leftovers:
            if not lease.holds:
                raise StorageError(_LEASE_LOST)
            if leftover.digest not in self._marking.marks:
                await self._blobs.delete(leftover.digest)
        await lease.condemn(())

    async def _condemn(self, lease: CollectionLock, batch: Sequence[ListedBlob]) -> None:
        await lease.condemn(blob.digest for blob in batch)
        await self._marking.look_again(max(self._cutoff, self._now - _SKEW))

    async def _delete_blob(self, blob: ListedBlob) -> None:
        if blob.digest in self._marking.marks:
            self._keep(blob)
            return
        await self._blobs.delete(blob.digest)
        self._deleted(blob)

    def _keep(self, blob: ListedBlob) -> None:
        self._result.keep(blob)
        self.observe(self._result)

    def _deleted(self, blob: ListedBlob) -> None:
        self._result.delete(blob)
        self.observe(self._result)
