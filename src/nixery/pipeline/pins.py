"""Which state of the package source a tag stands for, for a while."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from pydantic import BaseModel, ValidationError

from nixery.errors import NixeryError
from nixery.oci.canonical_json import canonical_json
from nixery.pipeline.single_flight import SingleFlight
from nixery.sources.source import PackageSource, Pin, Reference
from nixery.storage.store import RecordStore

_RECORDS = "pins"

# The part of a pin's life after which its successor is looked up, if somebody still uses it.
_REFRESH = 0.75

# By how many seconds the clocks of servers on one store may differ.
_SKEW = 60

_log = structlog.get_logger("nixery.pins")


class _Term(BaseModel):
    """A pin and the time, in seconds since the epoch, until which it holds."""

    identity: str
    revision: str
    url: str | None = None
    created: int | None = None
    until: float

    def pin(self, source: str) -> Pin:
        return Pin(source, self.identity, self.revision, self.url, self.created)


class _Record(BaseModel):
    current: _Term
    next: _Term | None = None


@dataclass(slots=True)
class _Held:
    pin: Pin
    until: float
    used: bool = False


class Pins:
    """Resolves tags, each at most once in a while.

    A pin is kept in the store, so that all servers on one store answer alike and a restart changes nothing. A pin that is in use
    gets its successor before it runs out, and keeps being the answer until then: all servers change over at the same time.

    Args:
        source: what tags are about.
        records: shared by all servers.
        time_to_live: how long a pin holds, in seconds; with 0 every request resolves.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        source: PackageSource,
        records: RecordStore,
        time_to_live: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._records = records
        self._time_to_live = time_to_live
        self._clock = clock
        self._held: dict[Reference, _Held] = {}
        self._renewals: SingleFlight[Reference, Pin] = SingleFlight()
        self._timers: dict[Reference, asyncio.TimerHandle] = {}
        self._refreshes: set[asyncio.Task[None]] = set()

    async def pin(self, tag: str) -> Pin:
        """Return what a tag stands for.

        Raises:
            SourceUnreachable: nobody knows.
            StorageError: the pin cannot be kept.
        """
        reference = self._source.reference(tag)
        held = self._held.get(reference)
        if held is not None and held.until > self._clock():
            held.used = True
            return held.pin
        return await self._renewals.run(reference, partial(self._renew, reference))

    async def replace(self, tag: str, outdated: Pin) -> Pin:
        """Return the successor of a pin whose package set cannot be had any more.

        Raises:
            SourceUnreachable, StorageError: as above.
        """
        reference = self._source.reference(tag)

        async def resolve() -> Pin:
            held = self._held.get(reference)
            # Somebody else may have been quicker.
            return held.pin if held and held.pin != outdated else await self._resolve(reference)

        return await self._renewals.run(reference, resolve)

    async def close(self) -> None:
        """Stop looking for successors."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for refresh in self._refreshes:
            refresh.cancel()
        await asyncio.gather(self._renewals.close(), *self._refreshes, return_exceptions=True)

    async def _renew(self, reference: Reference) -> Pin:
        record = await self._read(reference) if self._time_to_live else None
        for term in (record.current, record.next) if record else ():
            # One that would hold for longer than any is from a time with other settings.
            if term is not None and 0 < term.until - self._clock() <= self._time_to_live + _SKEW:
                return self._hold(reference, term)
        return await self._resolve(reference)

    async def _resolve(self, reference: Reference) -> Pin:
        term = await self._term(reference, self._clock())
        if self._time_to_live:
            await self._write(reference, _Record(current=term))
        return self._hold(reference, term)

    async def _refresh(self, reference: Reference) -> None:
        record = await self._read(reference)
        if record is None or record.next is not None:
            return
        try:
            record.next = await self._term(reference, record.current.until)
            await self._write(reference, record)
        except NixeryError as error:
            # The pin holds for a while yet. If this goes on, the one whose request finds it outdated is told.
            _log.warning("pin not refreshed", reference=reference.name, reason=str(error))

    async def _term(self, reference: Reference, start: float) -> _Term:
        pin = await self._source.resolve(reference)
        _log.info("pinned", source=pin.source, reference=reference.name, revision=pin.revision)
        return _Term(
            identity=pin.identity,
            revision=pin.revision,
            url=pin.url,
            created=pin.created,
            until=start + self._time_to_live,
        )

    def _hold(self, reference: Reference, term: _Term) -> Pin:
        pin = term.pin(self._source.description)
        remaining = term.until - self._clock()
        if remaining > 0:
            self._held[reference] = _Held(pin, term.until)
            delay = max(0.0, remaining - (1 - _REFRESH) * self._time_to_live)
            if reference in self._timers:
                self._timers[reference].cancel()
            self._timers[reference] = asyncio.get_running_loop().call_later(delay, self._due, reference)
        return pin

    def _due(self, reference: Reference) -> None:
        del self._timers[reference]
        if self._held[reference].used:
            task = asyncio.get_running_loop().create_task(self._refresh(reference))
            self._refreshes.add(task)
            task.add_done_callback(self._refreshes.discard)
        else:
            del self._held[reference]

    async def _read(self, reference: Reference) -> _Record | None:
        content = await self._records.get(_RECORDS, self._key(reference))
        try:
            return _Record.model_validate_json(content) if content is not None else None
        except ValidationError:
            return None  # torn: written anew

    async def _write(self, reference: Reference, record: _Record) -> None:
        await self._records.put(_RECORDS, self._key(reference), record.model_dump_json().encode())

    def _key(self, reference: Reference) -> str:
        return hashlib.sha256(canonical_json([self._source.description, reference.name])).hexdigest()
