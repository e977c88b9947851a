"""Which state of the package source a tag stands for, for a while."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

import structlog

from nixery.cache_counts import CacheCounts
from nixery.errors import EvaluationFailed, NixeryError, SourceUnreachable, TagUnknown, TooBusy
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.pipeline.pin_records import Held, Pinned, PinRecord, PinRecords, Term, reference_of_commit
from nixery.pipeline.single_flight import SingleFlight
from nixery.sources.location import redacted
from nixery.sources.source import PackageSource, Pin, Reference
from nixery.storage.store import RecordStore

# The part of a pin's life after which its successor is looked up, if somebody still uses it.
_REFRESH = 0.75

# By how many seconds the clocks of servers on one store may differ.
_SKEW = 60

# Seconds for which a source that could not be reached is left alone.
_PATIENCE = 30

# Seconds for which a request waits for a source, if it could be answered with an old pin.
_SLOW = 3.0

# Bytes of pins in memory, and of one of them, roughly.
_CAPACITY = 8 * 1024 * 1024
_SIZE = 512

_log = structlog.get_logger("nixery.pins")


class Pins:
    """Resolves tags, each at most once in a while.

    A pin is kept in the store, so that all servers on one store answer alike and a restart changes nothing. A pin that is in use
    gets its successor before it runs out, and keeps being the answer until then: all servers change over at the same time.
    A tag that cannot mean anything else tomorrow is resolved once.

    Args:
        source: what tags are about.
        records: shared by all servers.
        time_to_live: how long the pin of a moving tag holds, in seconds; with 0 every request resolves.
        clock: seconds since the epoch.
        failure_time_to_live: how long an unknown tag is known to be unknown, in seconds.

    Attributes:
        counts: of the tags that were asked for; the source is asked for what is in memory neither nor in the store.
    """

    def __init__(
        self,
        source: PackageSource,
        records: RecordStore,
        time_to_live: float,
        clock: Callable[[], float] = time.time,
        failure_time_to_live: float = 0,
    ) -> None:
        self.counts = CacheCounts()
        self._failure_time_to_live = failure_time_to_live
        self._source = source
        self._records = PinRecords(records, source)
        self._time_to_live = time_to_live
        self._clock = clock
        self._held: LeastRecentlyUsed[Reference, Held] = LeastRecentlyUsed(_CAPACITY)
        self._renewals: SingleFlight[Reference, Pinned] = SingleFlight()
        self._timers: dict[Reference, asyncio.TimerHandle] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._attempts: SingleFlight[Reference, Pinned] = SingleFlight()
        self._unknown: LeastRecentlyUsed[Reference, tuple[TagUnknown, float]] = LeastRecentlyUsed(_CAPACITY)

    async def pin(self, tag: str) -> Pinned:
        """Return what a tag stands for.

        Raises:
            TagUnknown: nothing.
            SourceUnreachable, TooBusy: nobody knows, and nobody ever knew.
            StorageError: the pin cannot be kept.
        """
        reference = self._source.reference(tag)
        held = self._held.get(reference)
        if held is not None and self._holds(reference, held.until):
            held.used = True
            if held.due:
                held.due = False
                self._look_ahead(reference)
            self.counts.hits += 1
            return held.pinned
        unknown = self._unknown.get(reference)
        if unknown is not None and unknown[1] > self._clock():
            raise unknown[0].without_frames()
        return await self._renewals.run(reference, partial(self._renew, reference))

    async def require_known(self, tag: str) -> None:
        """Check that a tag can be answered, now or by an earlier pin, without counting as a use of the pin.

        A probe that runs every few seconds must not keep an idle server polling its source.

        Raises:
            TagUnknown, SourceUnreachable, TooBusy, StorageError: see ``pin``.
        """
        reference = self._source.reference(tag)
        if self._held.get(reference) is None and await self._records.read(reference) is None:
            await self.pin(tag)

    def selects(self, tag: str) -> bool:
        """Whether a tag exists, or the source has no versions and accepts any tag.

        Raises:
            TagUnknown: the tag can never exist.
        """
        return bool(self._source.reference(tag).name)

    async def replace(self, tag: str, outdated: Pin) -> Pinned:
        """Return the successor of a pin whose package set cannot be had any more.

        Raises:
            TagUnknown, SourceUnreachable, StorageError: as above.
        """
        reference = self._source.reference(tag)

        async def resolve() -> Pinned:
            held = self._held.get(reference)
            # Somebody else may have been quicker.
            if held and held.pinned.pin != outdated:
                return held.pinned
            return await self._resolve(reference, await self._records.read(reference))

        return await self._renewals.run(reference, resolve)

    async def close(self) -> None:
        """Stop looking for successors."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for refresh in self._refreshes:
            refresh.cancel()
        flights = (self._renewals.close(), self._attempts.close())
        await asyncio.gather(*flights, *self._refreshes, return_exceptions=True)

    async def _renew(self, reference: Reference) -> Pinned:
        record = await self._records.read(reference)
        terms = [term for term in (record.current, record.next) if term is not None] if record else []
        for term in terms:
            if self._holds(reference, term.until):
                self.counts.hits += 1
                return self._hold(reference, term)
        self.counts.misses += 1
        # A request that an old pin can answer waits only briefly; the attempt continues, and later requests
        # get its result. With a time to live of 0, a request needs the current state.
        attempt = self._attempts.run(reference, partial(self._resolve, reference, record))
        try:
            return await asyncio.wait_for(attempt, _SLOW if terms and self._time_to_live else None)
        except TimeoutError:
            reason = f"the source of the packages has not answered within {_SLOW:g} seconds"
        except TagUnknown as error:
            until = self._clock() + self._failure_time_to_live
            self._unknown.put(reference, (error.without_frames(), until), _SIZE)
            raise
        except (SourceUnreachable, EvaluationFailed, TooBusy) as error:
            if not terms:
                raise
            reason = str(error)
        _log.warning("serving an old pin", reference=redacted(reference.name), reason=reason)
        pinned = Pinned(terms[-1].pin(self._source.description), reason)
        self._held.put(reference, Held(pinned, self._clock() + _PATIENCE), _SIZE)
        return pinned

    def _holds(self, reference: Reference, until: float) -> bool:
        # One that would hold for longer than any is from a time with other settings, or from before a clock was set back.
        return not reference.moving or 0 < until - self._clock() <= max(self._time_to_live, _PATIENCE) + _SKEW

    async def _resolve(self, reference: Reference, record: PinRecord | None = None) -> Pinned:
        term = await self._term(reference, self._clock())
        # While we asked, another server may have written down what it found: one digest for all.
        latest = await self._records.read(reference)
        if latest is not None and latest != record and self._holds(reference, latest.current.until):
            return self._hold(reference, latest.current)
        # With no time to live there is a resolution for each request, but only what is new is written down.
        if is_new := record is None or record.current.identity != term.identity:
            await self._note(reference, term)
        if is_new or self._time_to_live:
            await self._records.write(reference, PinRecord(current=term))
        return self._hold(reference, term)

    async def _refresh(self, reference: Reference) -> None:
        try:
            found = await self._records.read(reference)
            record = found and found.at(self._clock())
            if record is None or record.next is not None:
                return
            term = await self._term(reference, record.current.until)
            # Prefer a pin that was recorded during the look-up, since all others use it.
            if await self._records.read(reference) == found:
                if record.current.identity != term.identity:
                    await self._note(reference, term)
                await self._records.write(reference, PinRecord(current=record.current, next=term))
        except NixeryError as error:
            _log.warning("pin not refreshed", reference=redacted(reference.name), reason=str(error))

    async def _term(self, reference: Reference, start: float) -> Term:
        pin = await self._source.resolve(reference)
        source, name = redacted(pin.source), redacted(reference.name)
        _log.info("pinned", source=source, reference=name, revision=pin.revision)
        return Term.of(pin, start + self._time_to_live)

    async def _note(self, reference: Reference, term: Term) -> None:
        if reference.moving and (commit := reference_of_commit(self._source, term)) is not None:
            await self._records.write(commit, PinRecord(current=term))

    def _hold(self, reference: Reference, term: Term) -> Pinned:
        pinned = Pinned(term.pin(self._source.description))
        if not reference.moving:
            self._held.put(reference, Held(pinned, math.inf), _SIZE)
        elif (remaining := term.until - self._clock()) > 0:
            self._held.put(reference, Held(pinned, term.until), _SIZE)
            delay = max(0.0, remaining - (1 - _REFRESH) * self._time_to_live)
            if reference in self._timers:
                self._timers[reference].cancel()
            self._timers[reference] = asyncio.get_running_loop().call_later(delay, self._due, reference)
        return pinned

    def _due(self, reference: Reference) -> None:
        del self._timers[reference]
        held = self._held.get(reference)
        if held is not None and held.used:
            self._look_ahead(reference)
        elif held is not None:
            held.due = True

    def _look_ahead(self, reference: Reference) -> None:
        task = asyncio.get_running_loop().create_task(self._refresh(reference))
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)
