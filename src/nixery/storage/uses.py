"""Who uses what, as far as the collector of garbage has to know.

Using an image *claims* its manifests and indexes: each has a record of the kind ``uses`` under its digest, and when that was last
written is when it was last used. In the record are the digests of all that were claimed together, as the two manifests of an
image are.

A collector (``nixery.gc.collector``) writes down what it is about to delete, in a record of the kind ``collections``, *before*
it looks for new claims; whoever claims looks at that record *after* he has claimed. So one of the two sees the other, whatever
happens in between: the collector leaves the blob alone, or the claimant waits until it is gone, notices, and makes it again. That
takes no lock, only a storage where what was written is read by the next who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from nixery.caching import LRUCache
from nixery.errors import InvalidDigest, StorageError
from nixery.oci.digest import Digest
from nixery.storage.store import RecordStore

USES = "uses"
COLLECTIONS = "collections"

# Seconds after which a collector that does not renew its record is dead. It renews it far more often, and deletes nothing if it could not.
LEASE = 15.0

# Seconds between two looks at a collector that is in the way.
_PAUSE = 0.05

# Claims are renewed after this part of the grace period, and have to be made anew, with a look whether everything is there, after this one.
_RENEWED = 1 / 6
_OUTDATED = 1 / 2

# Bytes for the claims that this process knows of, and for what they hold.
_CAPACITY = 16 * 1024 * 1024

_log = structlog.get_logger("nixery.storage")


class Leases:
    """The claims of one process.

    Args:
        records: shared by all servers.
        grace: seconds for which nothing that was used is deleted, whatever else is wanted.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, records: RecordStore, grace: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._grace = grace
        self._clock = clock
        self._claimed: LRUCache[Digest, float] = LRUCache(_CAPACITY)
        # Of a blob, the manifests of the last image that was claimed with it.
        self._holders: LRUCache[Digest, Sequence[Digest]] = LRUCache(_CAPACITY)
        self._renewals: set[asyncio.Task[None]] = set()
        # Of each collector, when its record was written, and since when that is known here.
        self._collectors: dict[str, tuple[float, float]] = {}

    def note(self, documents: Iterable[Digest]) -> bool:
        """Count manifests and indexes as used, without waiting for anything.

        Returns:
            Whether that was enough. If not, nobody here has used them for a while: ``claim`` them, and look for their blobs.
        """
        now = self._clock()
        due = False
        together = list(documents)
        before: dict[Digest, float] = {}
        for document in together:
            claimed = self._claimed.get(document)
            if claimed is None or now - claimed > self._grace * _OUTDATED:
                return False
            before[document] = claimed
            if now - claimed > self._grace * _RENEWED:
                due = True
        if due:
            # At once, so that nobody else does the same meanwhile.
            self._remember(dict.fromkeys(together, now))
            task = asyncio.ensure_future(self._renew_or_take_back(before))
            self._renewals.add(task)
            task.add_done_callback(self._renewals.discard)
        return True

    def note_part(self, part: Digest) -> None:
        """Count an image as used because a blob that it holds is asked for: a pull that takes long asks for nothing else.

        Images that were claimed here within half of the grace period alone are known.
        """
        documents = self._holders.get(part)
        if documents is not None:
            self.note(documents)

    async def claim(self, documents: Iterable[Digest], parts: Iterable[Digest] = ()) -> None:
        """Claim manifests and indexes that are stored. What is there of them afterwards stays there for the grace period.

        A storage that cannot be written to takes no claims, and serves what it has all the same.

        Args:
            documents: what is claimed.
            parts: blobs that they hold, as far as the caller is going to rely on them.

        Raises:
            StorageError: the storage cannot be asked.
        """
        claimed, held = list(documents), list(parts)
        now = self._clock()
        for part in held:
            self._holders.put(part, claimed, 0)
        if await self._renew(claimed):
            self._remember(dict.fromkeys(claimed, now))
        await self._until_spared({digest.hex for digest in (*claimed, *held)})

    async def close(self) -> None:
        """Finish what goes on in the background."""
        await asyncio.gather(*self._renewals)

    def _remember(self, claimed: Mapping[Digest, float]) -> None:
        for document, when in claimed.items():
            self._claimed.put(document, when, 0)

    async def _renew_or_take_back(self, before: Mapping[Digest, float]) -> None:
        if not await self._renew(list(before)):
            self._remember(before)

    async def _renew(self, documents: Sequence[Digest]) -> bool:
        content = "\n".join(document.hex for document in documents).encode()
        try:
            # None of them says anything about another one, so a storage may write them at the same time.
            await asyncio.gather(
                *(self._records.renew(USES, document.hex, content) for document in documents)
            )
        except StorageError as error:
            _log.warning("a use cannot be written down", reason=str(error))
            return False
        return True

    async def _until_spared(self, digests: set[str]) -> None:
        # A collector is dead when its record has not changed for a while by our own clock, whatever time it is where it is stored. That
        # is remembered: one that was killed delays what was condemned once, and not every image anew.
        while True:
            waiting = False
            listing = [listed async for listed in self._records.scan(COLLECTIONS)]
            for gone in self._collectors.keys() - {listed.key for listed in listing}:
                del self._collectors[gone]
            for listed in listing:
                modified, since = self._collectors.setdefault(listed.key, (listed.modified, self._clock()))
                if modified != listed.modified:
                    self._collectors[listed.key] = (listed.modified, self._clock())
                elif self._clock() - since > LEASE:
                    continue
                condemned = await self._records.get(COLLECTIONS, listed.key) or b""
                waiting = waiting or not digests.isdisjoint(condemned.decode("ascii", "replace").split())
            if not waiting:
                return
            await asyncio.sleep(_PAUSE)


def claimed_together(content: bytes) -> Sequence[Digest]:
    """Read a record of the kind ``uses``; nothing if it is torn."""
    try:
        return tuple(Digest.parse(f"sha256:{line}") for line in content.decode("ascii", "replace").split())
    except InvalidDigest:
        return ()
