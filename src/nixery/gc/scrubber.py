"""Read everything that is stored, to find broken blobs and records before a client gets them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from nixery.errors import BlobUnknown, StorageError
from nixery.gc.records import CHECKS, is_digest
from nixery.oci.digest import Digest
from nixery.storage.blobs import BlobStore
from nixery.storage.records import USES, RecordStore

# Seconds between two passes in the background, and before the first.
_COOLDOWN = 3600.0

# Seconds; the rate is kept on average, by pauses that are at least as long.
_SHORTEST_PAUSE = 0.05

_log = structlog.get_logger("nixery.upkeep")


@dataclass(frozen=True, slots=True)
class Finding:
    """A blob or record that was broken, and was moved or deleted.

    Attributes:
        what: the digest of a blob, or kind and key of a record.
        reason: what is wrong with it.
    """

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A blob or record that was read.

    Attributes:
        size: bytes that were read.
        finding: ``None`` if it is whole.
    """

    size: int
    finding: Finding | None = None


class Scrubber:
    """Compares every blob with its digest and its size, and every record with the schema of its kind.

    It moves a broken blob to the quarantine; its image is built again at the next pull of its tag, since an
    image that lost a blob does not count as stored. It deletes a torn record; the code that needs it writes
    it again.

    Args:
        blobs: of a storage.
        records: of the same storage.
        rate: bytes to read in a second; ``None`` for no limit.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore, rate: float | None = None) -> None:
        self._blobs = blobs
        self._records = records
        self._rate = rate
        self._due = 0.0

    async def scrub(self) -> AsyncIterator[Checked]:
        """Check all blobs and records, and yield the result for each.

        Raises:
            StorageError: the storage fails.
        """
        async for listed in self._blobs.scan():
            yield await self._blob(listed.digest)
        for kind, check in CHECKS.items():
            async for record in self._records.scan(kind):
                yield await self._record(kind, record.key, check)

    async def run(self) -> None:
        """Scrub periodically, until it is cancelled."""
        while True:
            await asyncio.sleep(_COOLDOWN)
            try:
                async for checked in self.scrub():
                    if checked.finding is not None:
                        _log.error(
                            "quarantined broken data",
                            what=checked.finding.what,
                            reason=checked.finding.reason,
                        )
            except StorageError as error:
                _log.warning("cannot scrub the storage", reason=str(error))
            except Exception:  # noqa: BLE001 -- logged with its traceback
                # Keep running: no caller would notice that the task has ended.
                _log.exception("scrubbing failed")

    async def _blob(self, digest: Digest) -> Checked:
        size, reason = await self._read(digest)
        if reason is None:
            return Checked(size)
        # Read it again: a build that finds a blob broken replaces it.
        _, reason = await self._read(digest)
        if reason is None:
            return Checked(size)
        await self._blobs.quarantine(digest)
        return Checked(size, Finding(str(digest), reason))

    async def _read(self, digest: Digest) -> tuple[int, str | None]:
        """Return the stored size of a blob, and its defect."""
        actual, size = hashlib.sha256(), 0
        try:
            async for chunk in self._blobs.chunks(digest):
                await asyncio.to_thread(actual.update, chunk)
                size += len(chunk)
                await self._wait(len(chunk))
        except BlobUnknown:
            return 0, None  # deleted meanwhile
        except StorageError as error:
            if not _is_content_error(error):
                raise
            return size, f"cannot be read: {error}"
        if actual.hexdigest() != digest.hex:
            return size, f"its {size} bytes have the digest sha256:{actual.hexdigest()}"
        if await self._blobs.find(digest) is None:
            return size, "its recorded size is missing, or differs"
        return size, None

    async def _record(self, kind: str, key: str, check: Callable[[bytes], bool]) -> Checked:
        content = await self._records.get(kind, key)
        if content is None:
            return Checked(0)
        await self._wait(len(content))
        if check(content):
            return Checked(len(content))
        if kind == USES and is_digest(key):
            # Its key names the blob. Deleting the record could delete a lease that a server has just
            # acquired.
            await self._records.put(kind, key, key.encode())
        else:
            await self._records.delete(kind, key)
        return Checked(len(content), Finding(f"{kind}/{key}", "torn, or written with another schema"))

    async def _wait(self, size: int) -> None:
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + size / self._rate
        if self._due - now > _SHORTEST_PAUSE:
            await asyncio.sleep(self._due - now)


def _is_content_error(error: StorageError) -> bool:
    """Whether the blob or the disk is at fault, rather than permissions or the network."""
    return error.__cause__ is None or (
        isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO
    )
