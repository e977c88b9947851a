"""Keep a store within its limits in the background: collect garbage, and tidy records up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from nixery.errors import CollectionRunning, StorageError
from nixery.gc.collector import Collector
from nixery.gc.marking import enforce_bounds
from nixery.gc.policy import GcResult, RetentionPolicy
from nixery.quantities import DiskMark
from nixery.storage.files import FileSystemUse
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import USES

# Seconds between two looks at a file system, and between two sums of all blobs, which cost more.
_LOOK = 10.0
_SUM = 300.0

# Seconds until another collection, after one that could not delete enough: recently used images stay in use
# for a while.
_REST = 300.0

# The part of the manifests that a collection keeps when there are too many.
_STAYS = 0.9

_log = structlog.get_logger("nixery.upkeep")


@dataclass(frozen=True, slots=True)
class Marks:
    """Watermarks of storage use; both in the same unit.

    Attributes:
        high: above it, the keeper deletes images.
        low: the use at which it stops.
    """

    high: DiskMark
    low: DiskMark


class WatermarkMonitor:
    """Checks the limits periodically, and deletes what exceeds them.

    Args:
        collector: of the store.
        blobs: the store.
        records: of the same store.
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
        marks: Marks | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._blobs = blobs
        self._records = records
        self._usage = usage
        self._marks = marks
        self._clock = clock
        self._rests_until = 0.0

    async def run(self, tidied: float, seconds: float | None = None) -> None:
        """Run until it is cancelled.

        Args:
            tidied: seconds between two scans of all records.
            seconds: between two checks; ``None`` for an interval that suits the marks.
        """
        by_bytes = self._marks is None or self._marks.high.percent is None
        pause = seconds or (_SUM if by_bytes else _LOOK)
        tidy_at = self._clock()
        while True:
            if self._clock() >= tidy_at:
                await self._try(self.tidy, "records cannot be tidied up", "tidying records up failed")
                tidy_at = self._clock() + tidied
            await self._try(self.look, "garbage cannot be collected", "collecting garbage failed")
            await asyncio.sleep(pause)

    async def _try(self, work: Callable[[], Coroutine[Any, Any, None]], impossible: str, wrong: str) -> None:
        try:
            await work()
        except CollectionRunning:
            pass  # another server of this store was quicker
        except StorageError as error:
            _log.warning(impossible, reason=str(error))
        except Exception:  # noqa: BLE001 -- logged with its traceback
            # Keep running: no caller would notice that the task has ended.
            _log.exception(wrong)

    async def look(self) -> None:
        """Collect garbage if the high mark is passed.

        Raises:
            CollectionRunning: there is another collection.
            StorageError: the storage does not do what is asked.
        """
        if self._marks is None or self._clock() < self._rests_until:
            return
        excess = await self._excess(self._marks)
        if excess is None:
            return
        result = await self._collect(excess)
        if result.over or result.over_blobs:
            _log.warning("what is above the low mark is in use", bytes=result.over, blobs=result.over_blobs)
            self._rests_until = self._clock() + _REST

    async def tidy(self) -> None:
        """Delete records that are too old or too many, and images if the records of their use are too many.

        Raises:
            CollectionRunning: another collection is in progress.
            StorageError: the storage fails.
        """
        deleted = await enforce_bounds(self._records, time.time())
        if deleted:
            _log.info("tidied records up", deleted=deleted)
        bounds = KINDS[USES]
        count, oldest = 0, time.time() - bounds.age
        is_any_old = False
        async for listed in self._records.scan(USES):
            count += 1
            is_any_old = is_any_old or listed.modified < oldest
        if count > bounds.most or is_any_old:
            most = int(bounds.most * _STAYS) if count > bounds.most else None
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

    async def _excess(self, marks: Marks) -> RetentionPolicy | None:
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


def _beyond(marks: Marks, used: int, total: int) -> int | None:
    """Return the use above the low mark, if it exceeds the high one."""
    if used * 100 <= marks.high.value * total or not total:
        return None
    return int(used - marks.low.value * total / 100)
