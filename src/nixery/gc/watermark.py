"""Keep a storage within its limits in the background: collect garbage above a watermark, and delete excess records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from nixery.errors import CollectionRunning, StorageError
from nixery.gc.collector import Collector, GcResult, RetentionPolicy
from nixery.gc.records import enforce_bounds
from nixery.quantities import DiskMark
from nixery.storage.blobs import BlobStore
from nixery.storage.files import FileSystemUse
from nixery.storage.records import KINDS, USES, RecordStore

# Seconds between two checks by the use of the file system, and between two by a listing of all blobs, which
# costs more.
_CHECK_EVERY = 10.0
_LIST_EVERY = 300.0

# Seconds until another collection, after one that could not delete enough: recently used images stay in use
# for a while.
_COOLDOWN = 300.0

# The fraction of the bound on manifests that a collection keeps, if there are more than that.
_KEPT = 0.9

_log = structlog.get_logger("nixery.upkeep")


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Watermarks of storage use; both in the same unit.

    Attributes:
        high: above it, the monitor starts a collection.
        low: the use that the collection aims at.
    """

    high: DiskMark
    low: DiskMark


class WatermarkMonitor:
    """Checks the limits periodically, and deletes what exceeds them.

    Args:
        collector: of a storage.
        blobs: of the same storage.
        records: of the same storage.
        usage: reads the use of the file system.
        marks: the watermarks; ``None`` for no limit on bytes.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        collector: Collector,
        blobs: BlobStore,
        records: RecordStore,
        usage: Callable[[], FileSystemUse],
        marks: Watermarks | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._blobs = blobs
        self._records = records
        self._usage = usage
        self._marks = marks
        self._clock = clock
        self._cooldown_until = 0.0

    async def run(self, tidied: float, seconds: float | None = None) -> None:
        """Run until it is cancelled.

        Args:
            tidied: seconds between two scans of all records.
            seconds: between two checks; ``None`` for an interval that suits the marks.
        """
        by_bytes = self._marks is None or self._marks.high.percent is None
        pause = seconds or (_LIST_EVERY if by_bytes else _CHECK_EVERY)
        tidy_at = self._clock()
        while True:
            if self._clock() >= tidy_at:
                await self._try(
                    self.tidy, "cannot delete old records", "deleting old records failed unexpectedly"
                )
                tidy_at = self._clock() + tidied
            await self._try(self.look, "cannot collect garbage", "collecting garbage failed unexpectedly")
            await asyncio.sleep(pause)

    async def _try(
        self, work: Callable[[], Coroutine[Any, Any, None]], expected: str, unexpected: str
    ) -> None:
        try:
            await work()
        except CollectionRunning:
            pass  # by another server of this storage
        except StorageError as error:
            _log.warning(expected, reason=str(error))
        except Exception:  # noqa: BLE001 -- logged with its traceback
            # Keep running: no caller would notice that the task has ended.
            _log.exception(unexpected)

    async def look(self) -> None:
        """Collect garbage if the high mark is passed.

        Raises:
            CollectionRunning: another collection is in progress.
            StorageError: the storage fails.
        """
        if self._marks is None or self._clock() < self._cooldown_until:
            return
        surplus = await self._surplus(self._marks)
        if surplus is None:
            return
        result = await self._collect(surplus)
        if result.over or result.over_blobs:
            _log.warning(
                "the storage stays above its low watermark: the rest is in use",
                bytes=result.over,
                blobs=result.over_blobs,
            )
            self._cooldown_until = self._clock() + _COOLDOWN

    async def tidy(self) -> None:
        """Delete records that are too old or too many, and images if the records of their use are too many.

        Raises:
            CollectionRunning: another collection is in progress.
            StorageError: the storage fails.
        """
        deleted = await enforce_bounds(self._records, time.time())
        if deleted:
            _log.info("deleted old records", deleted=deleted)
        bounds = KINDS[USES]
        count, oldest = 0, time.time() - bounds.age
        is_any_old = False
        async for listed in self._records.scan(USES):
            count += 1
            is_any_old = is_any_old or listed.modified < oldest
        if count > bounds.most or is_any_old:
            most = int(bounds.most * _KEPT) if count > bounds.most else None
            await self._collect(RetentionPolicy(max_age=bounds.age, max_documents=most))

    async def _collect(self, limits: RetentionPolicy) -> GcResult:
        result = await self._collector.collect(limits)
        _log.info(
            "collected garbage",
            wanted=limits.free or 0,
            wanted_files=limits.free_files or 0,
            deleted=result.deleted_bytes,
            blobs=result.deleted,
            records=result.records,
            kept=result.kept_bytes,
        )
        return result

    async def _surplus(self, marks: Watermarks) -> RetentionPolicy | None:
        """Return how much to delete; ``None`` below the high mark."""
        if marks.high.percent is None:
            used = 0
            async for blob in self._blobs.scan():
                used += blob.size
            return RetentionPolicy(free=int(used - marks.low.value)) if used > marks.high.value else None
        use = await asyncio.to_thread(self._usage)
        free = _beyond(marks, use.used, use.total)
        free_files = _beyond(marks, use.used_files, use.total_files)
        return None if free is free_files is None else RetentionPolicy(free=free, free_files=free_files)


def _beyond(marks: Watermarks, used: int, total: int) -> int | None:
    """Return the use above the low mark, if it exceeds the high one."""
    if used * 100 <= marks.high.value * total or not total:
        return None
    return int(used - marks.low.value * total / 100)
