"""Leases: records of the images in use, for the garbage collector.

Using an image *acquires leases* on its manifests and indexes: each has a record of the kind ``uses`` under
its digest, and the time of that record is the time of the last use. The record holds the digests of all
documents that were leased together, as the two manifests of an image are. A lease lasts for the grace period.

A collector (``nixery.gc.collector``) writes the blobs that it is about to delete into a record of the kind
``collections`` *before* it looks for new leases; a process that acquires a lease reads that record *after* it
wrote the lease. So one of the two sees the other, in any order of events: either the collector keeps the
blob, or the process waits until the blob is deleted, notices that, and makes it again. That takes no lock,
only a storage where a read sees the writes before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from nixery.caching import LRUCache
from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.records import COLLECTIONS, USES, RecordStore, decode

# Seconds after which a collector that does not renew its record counts as dead. It renews it far more often,
# and deletes nothing if it could not.
COLLECTION_LEASE = 15.0

# Seconds between two polls of a collector that has condemned a blob.
_PAUSE = 0.05

# Fractions of the grace period after which a lease is renewed, and after which it has to be acquired again,
# with a check that all blobs exist.
_RENEW_AFTER = 1 / 6
_EXPIRES_AFTER = 1 / 2

# Bytes for the leases of this process, and for the blobs of their images.
_CAPACITY = 16 * 1024 * 1024

_log = structlog.get_logger("nixery.storage")


class Leases:
    """The leases of one process.

    Args:
        records: shared by all servers.
        grace: seconds for which nothing that was used is deleted, under any limits.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, records: RecordStore, grace: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._grace = grace
        self._clock = clock
        self._acquired: LRUCache[Digest, float] = LRUCache(_CAPACITY)
        # For each blob, the manifests of the last image that was leased with it.
        self._holders: LRUCache[Digest, Sequence[Digest]] = LRUCache(_CAPACITY)
        self._renewals: set[asyncio.Task[None]] = set()
        # For each collector, when its record was written, and since when this process knows that.
        self._collectors: dict[str, tuple[float, float]] = {}

    def renew(self, documents: Iterable[Digest]) -> bool:
        """Renew the leases on manifests and indexes in the background.

        Returns:
            Whether this process has leases on all of them. If not, ``acquire`` them and look for their blobs.
        """
        now = self._clock()
        is_due = False
        together = list(documents)
        before: dict[Digest, float] = {}
        for document in together:
            acquired = self._acquired.get(document)
            if acquired is None or now - acquired > self._grace * _EXPIRES_AFTER:
                return False
            before[document] = acquired
            is_due = is_due or now - acquired > self._grace * _RENEW_AFTER
        if is_due:
            # At once, so that no other request renews them meanwhile.
            self._remember(dict.fromkeys(together, now))
            task = asyncio.ensure_future(self._write_or_restore(before))
            self._renewals.add(task)
            task.add_done_callback(self._renewals.discard)
        return True

    def renew_holding(self, part: Digest) -> None:
        """Renew the leases on the image that holds a blob: a client that pulls for hours asks only for blobs.

        That image is known if its leases were acquired here within half of the grace period.
        """
        documents = self._holders.get(part)
        if documents is not None:
            self.renew(documents)

    async def acquire(self, documents: Iterable[Digest], parts: Iterable[Digest] = ()) -> None:
        """Acquire leases on stored manifests and indexes. Blobs that exist afterwards are kept for the grace period.

        If the storage cannot be written to, there are no leases, and the server still serves its blobs.

        Args:
            documents: to lease.
            parts: blobs that they hold and that the caller relies on from now on.

        Raises:
            StorageError: the storage cannot be read.
        """
        leased, held = list(documents), list(parts)
        now = self._clock()
        for part in held:
            self._holders.put(part, leased, 0)
        if await self._write(leased):
            self._remember(dict.fromkeys(leased, now))
        await self._wait_until_not_condemned({digest.hex for digest in (*leased, *held)})

    async def close(self) -> None:
        """Finish the renewals in the background."""
        await asyncio.gather(*self._renewals)

    def _remember(self, acquired: Mapping[Digest, float]) -> None:
        for document, when in acquired.items():
            self._acquired.put(document, when, 0)

    async def _write_or_restore(self, before: Mapping[Digest, float]) -> None:
        if not await self._write(list(before)):
            self._remember(before)

    async def _write(self, documents: Sequence[Digest]) -> bool:
        content = "\n".join(document.hex for document in documents).encode()
        try:
            # They do not depend on each other, so a storage may write them at the same time.
            await asyncio.gather(
                *(self._records.renew(USES, document.hex, content) for document in documents)
            )
        except StorageError as error:
            _log.warning("cannot record that an image is in use", reason=str(error))
            return False
        return True

    async def _wait_until_not_condemned(self, digests: set[str]) -> None:
        # A collector is dead when its record has not changed for a while by this process's clock, which is
        # independent of the storage's clock. This is cached, so that a killed collector delays each condemned
        # blob once rather than every image.
        while True:
            is_condemned = False
            listing = [listed async for listed in self._records.scan(COLLECTIONS)]
            for gone in self._collectors.keys() - {listed.key for listed in listing}:
                del self._collectors[gone]
            for listed in listing:
                modified, since = self._collectors.setdefault(listed.key, (listed.modified, self._clock()))
                if modified != listed.modified:
                    self._collectors[listed.key] = (listed.modified, self._clock())
                elif self._clock() - since > COLLECTION_LEASE:
                    continue
                condemned = await self._records.get(COLLECTIONS, listed.key) or b""
                is_condemned = is_condemned or not digests.isdisjoint(
                    condemned.decode("ascii", "replace").split()
                )
            if not is_condemned:
                return
            await asyncio.sleep(_PAUSE)


def leased_documents(content: bytes | None) -> Sequence[Digest]:
    """Return the documents of a record of the kind ``uses``; none if it is torn."""
    return decode(_read, content) or ()


def _read(content: bytes) -> Sequence[Digest]:
    return tuple(Digest.parse(f"sha256:{line}") for line in content.decode("ascii", "replace").split())
