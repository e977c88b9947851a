"""Collecting garbage in the background, when a store takes more than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from nixery.errors import CollectionRunning, StorageError
from nixery.storage.store import BlobStore
from nixery.upkeep.collector import Collector
from nixery.upkeep.limits import Limits

# Seconds between two looks at a file system, and between two sums of all blobs, which cost more.
_LOOK = 10.0
_SUM = 300.0

_log = structlog.get_logger("nixery.upkeep")


@dataclass(frozen=True, slots=True)
class FileSystemUsage:
    """What is used of a file system, by whomever, and what there is, in bytes."""

    used: int
    total: int


@dataclass(frozen=True, slots=True)
class Marks:
    """Above ``high``, images are deleted until ``low`` is reached.

    Attributes:
        high: percent, or bytes.
        low: in the same unit.
        in_percent: of the file system; if not, bytes of all blobs.
    """

    high: float
    low: float
    in_percent: bool


class Keeper:
    """Looks from time to time, and collects when it has to.

    Args:
        collector: of the store.
        blobs: the store.
        usage: of the file system.
        marks: what is allowed.
        seconds: between two looks; ``None`` for what suits the marks.
    """

    def __init__(
        self,
        collector: Collector,
        blobs: BlobStore,
        usage: Callable[[], FileSystemUsage],
        marks: Marks,
        seconds: float | None = None,
    ) -> None:
        self._collector = collector
        self._blobs = blobs
        self._usage = usage
        self._marks = marks
        self._seconds = seconds or (_LOOK if marks.in_percent else _SUM)

    async def run(self) -> None:
        """Go on until it is cancelled."""
        while True:
            try:
                await self.look()
            except CollectionRunning:
                pass  # another server of this store was quicker
            except StorageError as error:
                _log.warning("garbage cannot be collected", reason=str(error))
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Collect garbage if the high mark is passed.

        Raises:
            CollectionRunning: there is another collection.
            StorageError: the storage does not do what is asked.
        """
        excess = await self._excess()
        if excess is None:
            return
        result = await self._collector.collect(Limits(free=excess))
        _log.info(
            "collected garbage",
            wanted=excess,
            deleted=result.deleted_bytes,
            blobs=result.deleted,
            kept=result.kept_bytes,
        )
        if result.over:
            _log.warning("what is above the low mark is in use", bytes=result.over)

    async def _excess(self) -> int | None:
        """Return how many bytes have to go; ``None`` below the high mark."""
        if self._marks.in_percent:
            usage = await asyncio.to_thread(self._usage)
            unit, used = usage.total / 100, usage.used
        else:
            unit, used = 1.0, 0
            async for blob in self._blobs.scan():
                used += blob.size
        if used <= self._marks.high * unit:
            return None
        return int(used - self._marks.low * unit)
