"""Reading all that is stored, to find what is broken before somebody is sent it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from nixery.errors import BlobUnknown, InvalidDigest, StorageError
from nixery.gc.marking import CHECKS
from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import USES

# Seconds between two passes in the background, and before the first.
_REST = 3600.0

# Seconds of a pause that are worth one.
_SHORTEST_PAUSE = 0.05

_log = structlog.get_logger("nixery.upkeep")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is broken, and was put out of the way.

    Attributes:
        what: the digest of a blob, or kind and key of a record.
        reason: what is the matter with it.
    """

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A blob or record that was read.

    Attributes:
        size: bytes that were read.
        finding: ``None`` if it is in order.
    """

    size: int
    finding: Finding | None = None


class Scrubber:
    """Compares every blob with its digest and its size, and sees whether every record can be read.

    A broken blob is put into quarantine: its image is built again at the next pull of its tag, as the record of an image that has lost
    a blob counts for nothing. A torn record is deleted; whatever needs it writes it anew.

    Args:
        blobs: the store.
        records: what is known of it.
        rate: bytes a second to be read; ``None`` for as many as there come.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore, rate: float | None = None) -> None:
        self._blobs = blobs
        self._records = records
        self._rate = rate
        self._due = 0.0

    async def scrub(self) -> AsyncIterator[Checked]:
        """Look at everything, and tell of each thing after it was looked at.

        Raises:
            StorageError: the storage does not do what is asked.
        """
        async for listed in self._blobs.scan():
            yield await self._blob(listed.digest)
        for kind, check in CHECKS.items():
            async for record in self._records.scan(kind):
                yield await self._record(kind, record.key, check)

    async def run(self) -> None:
        """Scrub again and again, with rests, until it is cancelled."""
        while True:
            await asyncio.sleep(_REST)
            try:
                async for checked in self.scrub():
                    if checked.finding is not None:
                        _log.error("broken", what=checked.finding.what, reason=checked.finding.reason)
            except StorageError as error:
                _log.warning("the storage cannot be scrubbed", reason=str(error))
            except Exception:  # noqa: BLE001 -- logged with its traceback
                # It goes on: nobody would notice that it does not.
                _log.exception("scrubbing failed")

    async def _blob(self, digest: Digest) -> Checked:
        size, reason = await self._read(digest)
        if reason is None:
            return Checked(size)
        # It may have been put in order meanwhile: a blob that is seen to be broken is stored again.
        _, reason = await self._read(digest)
        if reason is None:
            return Checked(size)
        await self._blobs.quarantine(digest)
        return Checked(size, Finding(str(digest), reason))

    async def _read(self, digest: Digest) -> tuple[int, str | None]:
        """Return the size of what is stored, and what is wrong with it."""
        actual, size = hashlib.sha256(), 0
        try:
            async for chunk in self._blobs.chunks(digest):
                await asyncio.to_thread(actual.update, chunk)
                size += len(chunk)
                await self._wait(len(chunk))
        except BlobUnknown:
            return 0, None  # deleted meanwhile
        except StorageError as error:
            if not _is_about_the_content(error):
                raise
            return size, f"cannot be read: {error}"
        if actual.hexdigest() != digest.hex:
            return size, f"the {size} bytes of it have the digest sha256:{actual.hexdigest()}"
        if await self._blobs.find(digest) is None:
            return size, "the size that it was stored with is not known any more, or another one"
        return size, None

    async def _record(self, kind: str, key: str, check: Callable[[bytes], bool]) -> Checked:
        content = await self._records.get(kind, key)
        if content is None:
            return Checked(0)
        await self._wait(len(content))
        if check(content):
            return Checked(len(content))
        if kind == USES and _is_digest(key):
            # Its key names the blob. Deleting the record could remove a claim that a server has just made.
            await self._records.put(kind, key, key.encode())
        else:
            await self._records.delete(kind, key)
        return Checked(len(content), Finding(f"{kind}/{key}", "torn, or written by another version"))

    async def _wait(self, size: int) -> None:
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + size / self._rate
        if self._due - now > _SHORTEST_PAUSE:
            await asyncio.sleep(self._due - now)


def _is_digest(key: str) -> bool:
    try:
        Digest.parse(f"sha256:{key}")
    except InvalidDigest:
        return False
    return True


def _is_about_the_content(error: StorageError) -> bool:
    """Whether a blob is at fault, or the disk below it, and not the machine, its permissions or the network."""
    return error.__cause__ is None or (
        isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO
    )
