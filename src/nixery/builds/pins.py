"""Pins in the store, where all servers find them.

A package source that is not asked by too many at once.

Which state of the package source a tag stands for, for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import structlog
from pydantic import BaseModel, Field, ValidationError

from nixery.builds.slots import Slots
from nixery.caching import CacheCounts, LRUCache, SingleFlight
from nixery.errors import EvaluationFailed, NixeryError, SourceUnreachable, StorageError, TagUnknown, TooBusy
from nixery.nix.packages import PackageSet
from nixery.oci.documents import canonical_json
from nixery.source_location import COMMIT, redacted
from nixery.sources.source import EARLIEST, LATEST, PackageSource, Pin, Reference
from nixery.storage.store import RecordStore

PINS = "pins"

# Commands and header fields contain it. Others may have written the record, so it must not be an option or
# have line breaks.
_Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\-\x00-\x20\x7f][^\x00-\x1f\x7f]*$")]

_log = structlog.get_logger("nixery.pins")


@dataclass(frozen=True, slots=True)
class Pinned:
    """The answer to what a tag stands for.

    Attributes:
        pin: the state of the source.
        warning: why it may not be the latest one, in words for the client; ``None`` if it is what it should be.
    """

    pin: Pin
    warning: str | None = None


class Term(BaseModel):
    """A pin and the time, in seconds since the epoch, until which it holds."""

    identity: _Text
    revision: _Text
    url: _Text | None = None
    created: Annotated[int, Field(ge=EARLIEST, le=LATEST)] | None = None
    until: float

    @classmethod
    def of(cls, pin: Pin, until: float) -> Term:
        """Make the term of a pin."""
        return cls(
            identity=pin.identity, revision=pin.revision, url=pin.url, created=pin.created, until=until
        )

    def pin(self, source: str) -> Pin:
        """Return the pin, which is of the source with this description."""
        return Pin(source, self.identity, self.revision, self.url, self.created)


def reference_of_commit(source: PackageSource, term: Term) -> Reference | None:
    """Return the reference for a pinned commit of a branch or a tag; ``None`` if clients cannot ask for it.

    The pin is recorded under that reference as well: clients may ask for its digits later, even when no
    branch leads to it any more. That is one record for each state of the source that the server saw; clients
    cannot add more.
    """
    if COMMIT.fullmatch(term.revision) is None:
        return None
    try:
        commit = source.reference(term.revision)
    except TagUnknown:
        return None  # commits are no tags here
    return commit if commit.rule else None


class PinRecord(BaseModel):
    """What a reference stands for now, and what it will stand for then."""

    current: Term
    next: Term | None = None

    def at(self, now: float) -> PinRecord:
        """Return the record as it stands at a time: what comes next may have come."""
        if self.next is not None and self.current.until <= now:
            return PinRecord(current=self.next)
        return self


@dataclass(slots=True)
class Held:
    """A pin in memory; ``due`` when it is time to look its successor up, if somebody uses it."""

    pinned: Pinned
    until: float
    used: bool = False
    due: bool = False


class PinRecords:
    """The records of one source.

    Args:
        records: shared by all servers.
        source: decides whether a pin can be one of its states; anyone with access to a shared storage may
            have written it.
    """

    def __init__(self, records: RecordStore, source: PackageSource) -> None:
        self._records = records
        self._source = source

    async def read(self, reference: Reference) -> PinRecord | None:
        """Return the record of a reference, if there is one that can be understood.

        Raises:
            StorageError: the store cannot be asked.
        """
        content = await self._records.get(PINS, self._key(reference))
        try:
            record = PinRecord.model_validate_json(content) if content is not None else None
        except ValidationError:
            return None  # torn: written anew
        terms = (record.current, record.next) if record else ()
        for term in filter(None, terms):
            if not self._source.may_mean(reference, term.pin(self._source.description)):
                _log.warning("pin in the storage is not of this source", reference=redacted(reference.name))
                return None  # likewise
        return record

    async def write(self, reference: Reference, record: PinRecord) -> None:
        """Write the record of a reference.

        What is stored can be served although nothing more can be stored: then other servers find the pin for themselves.
        """
        try:
            await self._records.put(PINS, self._key(reference), record.model_dump_json().encode())
        except StorageError as error:
            _log.warning("pin not written down", reference=redacted(reference.name), reason=str(error))

    def _key(self, reference: Reference) -> str:
        # A commit that another rule accepted, or an older version without rules, counts as unknown.
        rule = [reference.rule] if reference.rule else []
        return hashlib.sha256(canonical_json([self._source.description, reference.name, *rule])).hexdigest()


class BoundedSource:
    """The ``PackageSource`` that bounds concurrent look-ups and fetches, since each may start a process.

    It does not bound opening package sets: only builds do that, and they have bounds of their own.

    Args:
        source: the underlying one.
        slots: not shared with builds, so that a task that holds one never waits for a build.
        commits: for searching a history for commits, which may fetch for minutes: branches and tags do not
            wait for that, even if clients make up many commits.
    """

    def __init__(self, source: PackageSource, slots: Slots, commits: Slots) -> None:
        self.description = source.description
        self._source = source
        self._slots = slots
        self._commits = commits

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return self._source.reference(tag)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``."""
        return self._source.may_mean(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``.

        Raises:
            TooBusy: too many others wait already.
        """
        async with (self._commits if reference.rule else self._slots).slot():
            return await self._source.resolve(reference)

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        """See ``PackageSource.open``."""
        return self._source.open(pin)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``, which may read a whole directory.

        Raises:
            TooBusy: too many others wait already.
        """
        async with self._slots.slot():
            await self._source.confirm(pin)


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
        self._held: LRUCache[Reference, Held] = LRUCache(_CAPACITY)
        self._renewals: SingleFlight[Reference, Pinned] = SingleFlight()
        self._timers: dict[Reference, asyncio.TimerHandle] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._attempts: SingleFlight[Reference, Pinned] = SingleFlight()
        self._unknown: LRUCache[Reference, tuple[TagUnknown, float]] = LRUCache(_CAPACITY)

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
        too_busy = False
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
            # One client's full share says nothing about the source: the next request tries again, so that no
            # client can keep the others on an old pin.
            too_busy = isinstance(error, TooBusy)
        _log.warning("serving an old pin", reference=redacted(reference.name), reason=reason)
        pinned = Pinned(terms[-1].pin(self._source.description), reason)
        if not too_busy:
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
