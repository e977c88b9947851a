"""What identities had built, shared by the servers of a storage, so that quotas of builds hold for all of them together.

Each server has one record, a list of its last events: a build began, or ended with some bytes. A server reads the
records of the others before it admits a build, and adds their events to its own counters. A restarted server reads those
of its predecessor. So the servers agree up to the events of the last seconds; no lock, and no request waits for another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, NamedTuple

import structlog
from pydantic import BaseModel, Field

from nixery.errors import StorageError
from nixery.storage.records import QUOTA_USAGE, CheckedList, RecordStore, decode

# Seconds for which an event counts: the longest time of a quota.
_DAY = 86_400.0

# Events of a server that are kept in its record, and events of other servers that wait for a client to come here.
_MOST_EVENTS, _MOST_PENDING = 2000, 50_000

# Records that are read: those of servers that wrote last.
_MOST_SERVERS = 64

# Seconds between two writes, and between two readings; for which a build waits for a reading; and until a write that
# failed is repeated.
_PAUSE, _PATIENCE, _RETRY = 2.0, 1.0, 20.0

# Seconds for which a record may change without another time of its own: buckets have times in whole seconds.
_TIME_STEP = 3.0

_MOST_BYTES = 10**15

_log = structlog.get_logger("nixery.access")


class Event(NamedTuple):
    """Something that an identity or address had done.

    Attributes:
        time: in seconds since the epoch.
        client: whose, as ``_key_of``.
        builds: that began; negative for one that then did not.
        size: compressed bytes that were built.
    """

    time: float
    client: str
    builds: int
    size: int


class UsageRecord(BaseModel):
    """The events of a server, oldest first.

    Attributes:
        first: number of the first one, counted from the start of the server.
        events: as ``Event``.
    """

    first: int = Field(ge=0, le=10**12)
    events: CheckedList[
        tuple[
            Annotated[float, Field(ge=0, le=1e11)],
            Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")],
            Annotated[int, Field(ge=-1, le=1)],
            Annotated[int, Field(ge=0, le=_MOST_BYTES)],
        ]
    ] = Field(max_length=_MOST_EVENTS)


class SharedUsage:
    """The usage of all servers of a storage. For one event loop.

    Args:
        records: of the storage.
        clock: seconds since the epoch.
    """

    def __init__(self, records: RecordStore, clock: Callable[[], float] = time.time) -> None:
        self._records = records
        self._clock = clock
        self._server = secrets.token_hex(8)
        # Ours.
        self._first = 0
        self._events: deque[Event] = deque()
        self._written = 0
        self._writing: asyncio.Task[None] | None = None
        # Those of others: by client, and by server the number of the next event, when its record was written and read.
        self._pending: dict[str, list[Event]] = {}
        self._number_pending = 0
        self._seen: dict[str, tuple[int, float, float]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._read_at = float("-inf")
        self._fails = False
        self._closed = False

    def note(self, client: str, builds: int = 0, size: int = 0) -> None:
        """Count something that a client of this server had done, and have it written soon."""
        self._events.append(Event(self._clock(), _key_of(client), builds, min(size, _MOST_BYTES)))
        self._forget_old()
        if not self._closed and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def refresh(self) -> None:
        """Learn what other servers have counted: from the storage, every two seconds at most, and within a second.

        Without the storage, builds are admitted by what is known: it fails nothing.
        """
        if self._reading is None or self._reading.done():
            if self._clock() - self._read_at < _PAUSE:
                return
            self._reading = asyncio.get_running_loop().create_task(self._read())
        await asyncio.wait({self._reading}, timeout=_PATIENCE)

    def take(self, client: str) -> Sequence[tuple[float, int, int]]:
        """Return the events of other servers about a client that were not taken before, oldest first.

        Returns:
            Of each, the seconds since then, builds and bytes.
        """
        found = self._pending.pop(_key_of(client), [])
        self._number_pending -= len(found)
        now = self._clock()
        return [(max(0.0, now - event.time), event.builds, event.size) for event in sorted(found)]

    async def close(self) -> None:
        """Write what is not written, and stop."""
        self._closed = True
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(StorageError):
            await self._write()

    async def _write_soon(self) -> None:
        while self._written < self._first + len(self._events):
            try:
                await self._write()
                pause = _PAUSE
            except StorageError as error:
                self._complain(error)
                pause = _RETRY
            await asyncio.sleep(pause)

    async def _write(self) -> None:
        number = self._first + len(self._events)
        if self._written == number:
            return
        document = {"first": self._first, "events": list(self._events)}
        await self._records.put(
            QUOTA_USAGE, self._server, json.dumps(document, separators=(",", ":")).encode()
        )
        self._written, self._fails = number, False

    def _forget_old(self) -> None:
        oldest = self._clock() - _DAY
        while self._events and (self._events[0].time < oldest or len(self._events) > _MOST_EVENTS):
            self._events.popleft()
            self._first += 1

    async def _read(self) -> None:
        try:
            now = self._clock()
            listed = [
                one
                async for one in self._records.scan(QUOTA_USAGE)
                if one.key != self._server and now - one.modified < _DAY
            ]
            listed.sort(key=lambda one: one.modified, reverse=True)
            for one in listed[:_MOST_SERVERS]:
                _, modified, read = self._seen.get(one.key, (0, None, 0.0))
                if modified != one.modified or read - one.modified < _TIME_STEP:
                    content = await self._records.get(QUOTA_USAGE, one.key)
                    self._add(one.key, one.modified, decode(read_usage, content))
            self._read_at, self._fails = self._clock(), False
        except StorageError as error:
            self._read_at = self._clock()
            self._complain(error)

    def _add(self, server: str, modified: float, record: UsageRecord | None) -> None:
        if record is None:
            return
        now = self._clock()
        next_event = self._seen.get(server, (0, 0.0, 0.0))[0]
        for values in record.events[max(0, next_event - record.first) :]:
            # A clock that is ahead must not make an event count for longer.
            event = Event(min(values[0], now), *values[1:])
            if now - event.time < _DAY:
                self._pending.setdefault(event.client, []).append(event)
                self._number_pending += 1
        self._seen[server] = (record.first + len(record.events), modified, now)
        while len(self._seen) > 2 * _MOST_SERVERS:
            del self._seen[min(self._seen, key=lambda one: self._seen[one][1])]
        while self._number_pending > _MOST_PENDING:
            # Of the client that was added first; its quota is then that of the servers it uses.
            self._number_pending -= len(self._pending.pop(next(iter(self._pending))))

    def _complain(self, error: StorageError) -> None:
        if not self._fails:
            _log.warning("cannot share the use of quotas with other servers", reason=str(error))
        self._fails = True


def read_usage(content: bytes) -> UsageRecord:
    """Read a record.

    Raises:
        ValueError: it is torn.
    """
    return UsageRecord.model_validate_json(content)


def _key_of(client: str) -> str:
    """Return the key of a client: of one length, and without names and addresses in the storage."""
    return hashlib.sha256(client.encode(errors="surrogatepass")).hexdigest()[:32]
