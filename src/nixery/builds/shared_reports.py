"""Reports of running builds for the other servers of a storage.

They are written in rounds, so that no event of a build costs a write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from nixery.errors import StorageError
from nixery.storage.records import BUILD_PROGRESS, BUILDS, KINDS, RecordStore

# Seconds between two writes of one report that changes, and of one that does not: readers take a report that was
# not written for longer than three of the latter as that of a dead server.
_PAUSE = 2.0
_BEAT = 20.0
STALE = 3 * _BEAT

# Seconds between two rounds of writes, and for which a request waits for its report to be written.
_REST = 0.1
_PATIENCE = 2.0

_log = structlog.get_logger("nixery.build")

# Returns the report to write, and whether it may still change; ``None`` to delete the stored one.
ReportContent = Callable[[str], tuple[bytes, bool] | None]


class SharedReports:
    """The reports of this process in the storage, as the other servers read them.

    Args:
        records: of the storage.
        content: of a report, by the id of its build.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, records: RecordStore, content: ReportContent, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._content = content
        self._clock = clock
        self._changed: set[str] = set()
        self._written: set[str] = set()
        # Those of the written ones whose first write has ended.
        self._readable: set[str] = set()
        # Those of the written ones that may still change.
        self._live: set[str] = set()
        self._next_round = self._next_beat = 0.0
        self._wake = asyncio.Event()
        self._round = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._fails = False

    def changed(self, build: str) -> None:
        """Have the report of a build written, or deleted, soon."""
        self._changed.add(build)
        if build not in self._written:
            self._wake.set()
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def written(self, builds: Sequence[str]) -> None:
        """Wait until the other servers can read the reports of new builds, for two seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not self._closed and any(map(self._is_unread, builds)):
                    await self._round.wait()

    def _is_unread(self, build: str) -> bool:
        return build not in self._readable and self._content(build) is not None

    async def read(self, build: str) -> bytes | None:
        """Return the stored report of a build, running or finished; ``None`` if there is none.

        Raises:
            StorageError: the storage cannot be read.
        """
        # In this order: a finished report is written before the one of its progress is deleted.
        return await self._records.get(BUILD_PROGRESS, build) or await self._records.get(BUILDS, build)

    async def close(self) -> None:
        """Write what is pending, and stop."""
        self._closed = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._write(set(self._changed))

    async def _run(self) -> None:
        while (self._changed or self._live) and not self._closed:
            now = self._clock()
            due = {build for build in self._changed if build not in self._written}
            if now >= self._next_round:
                self._next_round = now + _PAUSE
                due |= self._changed
            if now >= self._next_beat:
                self._next_beat = now + _BEAT
                due |= self._live
            self._wake.clear()
            await self._write(due)
            self._round.set()
            self._round = asyncio.Event()
            await asyncio.sleep(_REST)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, self._next_round - self._clock()))

    async def _write(self, builds: set[str]) -> None:
        for build in sorted(builds):
            self._changed.discard(build)
            try:
                await self._write_one(build)
            except StorageError as error:
                self._changed.add(build)
                self._next_round = self._clock() + _BEAT
                if not self._fails:
                    _log.warning("cannot share the progress of builds", reason=str(error))
                self._fails = True
                return
            self._fails = False

    async def _write_one(self, build: str) -> None:
        found = self._content(build)
        if found is None:
            if build in self._written:
                await self._records.delete(BUILD_PROGRESS, build)
                self._written.discard(build)
                self._readable.discard(build)
            self._live.discard(build)
            return
        content, is_live = found
        (self._live.add if is_live else self._live.discard)(build)
        self._written.add(build)  # also if the write fails half-way
        if len(content) <= KINDS[BUILD_PROGRESS].largest:
            await self._records.put(BUILD_PROGRESS, build, content)
        self._readable.add(build)
