"""Collecting garbage in the background, when a store takes more than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from nixery.errors import CollectionRunning, StorageError
from nixery.settings.quantities import DiskMark
from nixery.storage.store import BlobStore
from nixery.upkeep.collector import Collector
from nixery.upkeep.limits import Limits

# Seconds between two looks at a file system, and between two sums of all blobs, which cost more.
_LOOK = 10.0
_SUM = 300.0

_log = structlog.get_logger("nixery.upkeep")


class Keeper:
    """Looks from time to time, and collects when it has to.

    Args:
        collector: of the store.
        blobs: the store.
        usage: asks how many bytes of the file system are used, by whomever, and how many there are.
        high: above this mark, images are deleted.
        low: until this one is reached; in the same unit.
        seconds: between two looks; ``None`` for what suits the marks.
    """

    def __init__(
        self,
        collector: Collector,
        blobs: BlobStore,
        usage: Callable[[], tuple[int, int]],
        high: DiskMark,
        low: DiskMark,
        seconds: float | None = None,
    ) -> None:
        self._collector = collector
        self._blobs = blobs
        self._usage = usage
        self._high = high
        self._low = low
        self._seconds = seconds or (_SUM if high.percent is None else _LOOK)

    async def run(self) -> None:
        """Go on until it is cancelled."""
        while True:
            try:
                await self.look()
            except CollectionRunning:
                pass  # another server of this store was quicker
            except StorageError as error:
                _log.warning("garbage cannot be collected", reason=str(error))
            except Exception:  # noqa: BLE001 -- logged with its traceback
                # It goes on: nobody would notice that it does not.
                _log.exception("collecting garbage failed")
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
        if self._high.percent is not None:
            used, total = await asyncio.to_thread(self._usage)
            unit = total / 100
        else:
            unit, used = 1.0, 0
            async for blob in self._blobs.scan():
                used += blob.size
        if used <= self._high.value * unit:
            return None
        return int(used - self._low.value * unit)
