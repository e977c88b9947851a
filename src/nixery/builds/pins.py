"""Pins: which state of the package source a tag stands for, and for how long. All servers on a storage share them."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypeVar

import cachetools
import structlog
from pydantic import BaseModel, Field, ValidationError

from nixery.builds.slots import Slots
from nixery.caching import CacheCounts, LRUCache, SingleFlight, TTLCache
from nixery.errors import (
    EvaluationFailed,
    NixeryError,
    PackageSetChanged,
    SourceUnreachable,
    StorageError,
    TagUnknown,
    TooBusy,
)
from nixery.oci.documents import canonical_json
from nixery.source_location import COMMIT, redacted
from nixery.sources.source import EARLIEST, LATEST, PackageSource, Pin, Reference
from nixery.storage.records import PINS, RecordStore

# A pin in use is refreshed after this part of its life.
_REFRESH = 0.75

# Seconds by which the clocks of servers on one storage may differ.
_SKEW = 60

# Seconds between attempts to reach a source that is unreachable.
_COOLDOWN = 30

# Seconds that a request waits for the source if an old pin can answer it.
_SLOW = 3.0

# Bytes of pins in memory, and of one of them, roughly.
_CAPACITY = 8 * 1024 * 1024
_SIZE = 512

# Seconds for which the source's last answer about the default tag says whether it can be asked: after an
# answer, and after a failure. Probes come every few seconds, and must not cost a request each.
_ANSWER_KEPT = 300
_FAILURE_KEPT = 60

# The tag that every source has, and that clients use unless told otherwise.
DEFAULT_TAG = "latest"

# A tag that only a source without versions has no name for.
_ANY_TAG = "any"

# Tags whose states are shown with their names.
_NAMED = 256

# Concurrent and waiting look-ups of tags, by default.
_LOOK_UPS, _WAITING = 16, 2048

# Commands and header fields contain it. Others may have written the record, so it must not be an option or
# have line breaks.
_Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\-\x00-\x20\x7f][^\x00-\x1f\x7f]*$")]

Answer = TypeVar("Answer")

_log = structlog.get_logger("nixery.pins")


@dataclass(frozen=True, slots=True)
class Pinned:
    """The state that a tag stands for.

    Attributes:
        pin: the state of the source.
        warning: why it may be outdated, in words for the client; ``None`` if it is current.
    """

    pin: Pin
    warning: str | None = None


class Term(BaseModel):
    """A pin and its expiry, in seconds since the epoch."""

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


class PinRecord(BaseModel):
    """The current pin of a reference, and its successor."""

    current: Term
    next: Term | None = None

    def at(self, now: float) -> PinRecord:
        """Return the record as of a time at which the next pin may have become the current one."""
        if self.next is not None and self.current.until <= now:
            return PinRecord(current=self.next)
        return self


class PinRecords:
    """The stored pins of one source.

    Args:
        records: shared by all servers.
        source: decides whether a pin can be one of its states; anyone with access to a shared storage may
            have written it.
    """

    def __init__(self, records: RecordStore, source: PackageSource) -> None:
        self._records = records
        self._source = source

    async def read(self, reference: Reference) -> PinRecord | None:
        """Return the record of a reference; ``None`` if there is none, or if it is not valid for this source.

        Raises:
            StorageError: the storage cannot be read.
        """
        content = await self._records.get(PINS, self._key(reference))
        try:
            record = PinRecord.model_validate_json(content) if content is not None else None
        except ValidationError:
            return None  # torn: overwritten by the next look-up
        terms = (record.current, record.next) if record else ()
        for term in filter(None, terms):
            if not self._source.may_mean(reference, term.pin(self._source.description)):
                _log.warning("pin in the storage is not of this source", reference=redacted(reference.name))
                return None  # likewise
        return record

    async def write(self, reference: Reference, record: PinRecord) -> None:
        """Write the record of a reference.

        A storage that cannot be written to can still serve images; then each server finds the pin for itself.
        """
        try:
            await self._records.put(PINS, self._key(reference), record.model_dump_json().encode())
        except StorageError as error:
            _log.warning("cannot store pin", reference=redacted(reference.name), reason=str(error))

    def _key(self, reference: Reference) -> str:
        # A commit that another rule accepted, or an older version without rules, counts as unknown.
        rule = [reference.rule] if reference.rule else []
        return hashlib.sha256(canonical_json([self._source.description, reference.name, *rule])).hexdigest()


@dataclass(frozen=True, slots=True)
class LookUpBounds:
    """Limits of look-ups in the source, each of which may start a process.

    They are not shared with builds, so that a task that holds a slot never waits for a build.

    Attributes:
        tags: concurrent and waiting look-ups of branches and tags, and confirmations of pins.
        commits: the same for searches of a history for a commit, which may fetch for minutes: branches and
            tags do not wait for them, even if clients make up many commits.
    """

    tags: Slots = field(default_factory=lambda: Slots(_LOOK_UPS, _WAITING, busy=TooBusy.LOOKUPS))
    commits: Slots = field(default_factory=lambda: Slots(_LOOK_UPS, _WAITING, busy=TooBusy.LOOKUPS))


@dataclass(slots=True)
class _Held:
    """A pin in memory.

    Attributes:
        until: its expiry, in seconds since the epoch.
        used: whether a request has used it, so that it is worth a refresh.
        due: whether the next use starts the refresh.
    """

    pinned: Pinned
    until: float
    used: bool = False
    due: bool = False


@dataclass(frozen=True, slots=True)
class _Contact:
    """The last time that the source was asked about the default tag.

    Attributes:
        until: until when it is worth something, in seconds since the epoch.
        failure: why the source did not answer; empty if it did.
    """

    until: float
    failure: str = ""


class Pins:
    """Resolves tags, each at most once in its time to live.

    A pin is stored, so that all servers on one storage give the same answers and a restart changes nothing. A
    pin in use is refreshed before it expires, and remains the answer until then: all servers change over at
    the same time. A tag that cannot move is resolved once.

    Args:
        source: resolves tags.
        records: shared by all servers.
        time_to_live: seconds for which a moving tag is pinned; with 0 every request resolves it.
        clock: seconds since the epoch, since pins are shared with other machines.
        failure_time_to_live: seconds for which an unknown tag is the answer without another attempt.
        bounds: of look-ups in the source.
        current_only: whether a moving tag never has an earlier pin: not one that another server stored, and not
            the last one of a source that is out of reach or broken.

    Attributes:
        counts: of tags; a miss asks the source.
    """

    def __init__(  # noqa: PLR0913 -- a server sets some, tests set others
        self,
        source: PackageSource,
        records: RecordStore,
        time_to_live: float,
        clock: Callable[[], float] = time.time,
        failure_time_to_live: float = 0,
        bounds: LookUpBounds | None = None,
        *,
        current_only: bool = False,
    ) -> None:
        self.counts = CacheCounts()
        self._source = source
        self._records = PinRecords(records, source)
        self._time_to_live = time_to_live
        self._clock = clock
        self._failure_time_to_live = failure_time_to_live
        self._bounds = bounds or LookUpBounds()
        self._current_only = current_only
        # With an expiry that is checked on use, since the clock may be set back (see ``_is_valid``).
        self._held: LRUCache[Reference, _Held] = LRUCache(_CAPACITY)
        # Of moving tags, for people.
        self._revisions: cachetools.LRUCache[Reference, str] = cachetools.LRUCache(_NAMED)
        self._unknown: TTLCache[Reference, TagUnknown] = TTLCache(_CAPACITY, clock)
        self._renewals: SingleFlight[Reference, Pinned] = SingleFlight()
        self._attempts: SingleFlight[Reference, Pinned] = SingleFlight()
        self._timers: dict[Reference, asyncio.TimerHandle] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._contact: _Contact | None = None
        self._contacting: asyncio.Task[None] | None = None
        self._watchers: list[Callable[[Pin, bool], None]] = []

    def watch(self, watcher: Callable[[Pin, bool], None]) -> None:
        """Call a function with each pin that a tag of the source gets, now or soon; not with commits that clients choose.

        Args:
            watcher: gets the pin, and whether it is that of the default tag.
        """
        self._watchers.append(watcher)

    async def pin(self, tag: str) -> Pinned:
        """Return the pin of a tag.

        Raises:
            TagUnknown: the source has no such tag.
            SourceUnreachable, TooBusy: the source cannot be asked, and no earlier pin is known.
            StorageError: the storage cannot be read.
        """
        reference = self._source.reference(tag)
        held = self._held.get(reference)
        if held is not None and self._is_valid(reference, held.until):
            held.used = True
            if held.due:
                held.due = False
                self._start_refresh(reference)
            self.counts.hits += 1
            return held.pinned
        unknown = self._unknown.get(reference)
        if unknown is not None:
            raise unknown.without_frames()
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

    def resolution_failure(self) -> str:
        """Why the source did not answer when it was last asked about the default tag; empty if it did.

        The server serves pinned states all the same; it cannot find later ones. Returns at once, with the
        result of an earlier question. If that is old, one new question starts in the background. A default tag
        that cannot move needs no question.
        """
        now, contact = self._clock(), self._contact
        # The clock may have been set back.
        is_fresh = contact is not None and 0 < contact.until - now <= _ANSWER_KEPT
        moves = self._source.reference(DEFAULT_TAG).moving
        if moves and not is_fresh and self._contacting is None:
            self._contacting = asyncio.get_running_loop().create_task(self._try_contact())
        return contact.failure if contact is not None else ""

    def selects(self, tag: str) -> bool:
        """Whether the source has versions, and the tag can be one; a source without versions accepts any tag.

        Raises:
            TagUnknown: the tag can never exist.
        """
        return bool(self._source.reference(tag).name)

    @property
    def ignores_tags(self) -> bool:
        """Whether the source has one state, as a directory has, which every tag stands for."""
        try:
            return not self._source.reference(_ANY_TAG).name
        except TagUnknown:
            return False

    def exact_tag(self, revision: str) -> str | None:
        """Return the tag that always means one state of the source; ``None`` if it accepts no commits as tags."""
        if COMMIT.fullmatch(revision) is None:
            return None
        try:
            reference = self._source.reference(revision)
        except TagUnknown:
            return None
        return revision if reference.name == revision else None

    @property
    def tags(self) -> Mapping[str, str]:
        """Tags by the revision that they stand for now, as far as this server has looked them up lately.

        Of several tags with one revision, the default tag wins.
        """
        tags = {revision: reference.name for reference, revision in self._revisions.items()}
        default = self._revisions.get(self._source.reference(DEFAULT_TAG))
        return tags if default is None else {**tags, default: DEFAULT_TAG}

    async def confirmed(self, tag: str) -> Pin:
        """Return the pin of a tag whose package set is still available, or the pin that replaces it.

        Raises:
            TagUnknown, SourceUnreachable, TooBusy, StorageError: see ``pin``.
        """
        pin = (await self.pin(tag)).pin
        try:
            async with self._bounds.tags.slot():  # it may read a whole directory
                await self._source.confirm(pin)
        except PackageSetChanged:
            pin = (await self.replace(tag, pin)).pin
        return pin

    async def ask(self, tag: str) -> Pin:
        """Ask the source what a tag means now; changes no pin.

        Raises:
            TagUnknown, SourceUnreachable, TooBusy: see ``pin``.
        """
        return await self._ask(self._source.reference(tag))

    async def replace(self, tag: str, outdated: Pin) -> Pinned:
        """Replace a pin whose package set is no longer available.

        Raises:
            TagUnknown, SourceUnreachable, TooBusy, StorageError: see ``pin``.
        """
        reference = self._source.reference(tag)

        async def resolve() -> Pinned:
            held = self._held.get(reference)
            if held and held.pinned.pin != outdated:
                return held.pinned  # another request has replaced it
            return await self._resolve(reference, await self._records.read(reference))

        return await self._renewals.run(reference, resolve)

    async def close(self) -> None:
        """Stop refreshing pins."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = {*self._refreshes, *filter(None, [self._contacting])}
        for task in tasks:
            task.cancel()
        flights = (self._renewals.close(), self._attempts.close())
        await asyncio.gather(*flights, *tasks, return_exceptions=True)

    async def _renew(self, reference: Reference) -> Pinned:
        record = await self._records.read(reference)
        terms = [term for term in (record.current, record.next) if term is not None] if record else []
        for term in terms:
            if self._may_answer(reference, term):
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
            reason = f"the package source has not answered within {_SLOW:g} seconds"
        except TagUnknown as error:
            self._unknown.put(reference, error.without_frames(), _SIZE, self._failure_time_to_live)
            raise
        except (SourceUnreachable, EvaluationFailed, TooBusy) as error:
            if not terms or self._current_only:
                raise
            reason = str(error)
            # One client's full share says nothing about the source: the next request tries again, so that no
            # client can keep the others on an old pin.
            too_busy = isinstance(error, TooBusy)
        _log.warning("serving an old pin", reference=redacted(reference.name), reason=reason)
        pinned = Pinned(terms[-1].pin(self._source.description), reason)
        if not too_busy:
            self._held.put(reference, _Held(pinned, self._clock() + _COOLDOWN), _SIZE)
        return pinned

    def _may_answer(self, reference: Reference, term: Term) -> bool:
        # Another server may have stored it with a longer time to live.
        return self._is_valid(reference, term.until) and not (self._current_only and reference.moving)

    def _is_valid(self, reference: Reference, until: float) -> bool:
        # A pin with longer to live than any has was written under other settings, or before the clock was set
        # back.
        longest = max(self._time_to_live, _COOLDOWN) + _SKEW
        return not reference.moving or 0 < until - self._clock() <= longest

    async def _resolve(self, reference: Reference, record: PinRecord | None) -> Pinned:
        term = await self._look_up(reference, self._clock())
        # Meanwhile another server may have stored its own result: all servers give the same answer.
        latest = await self._records.read(reference)
        if latest is not None and latest != record and self._may_answer(reference, latest.current):
            return self._hold(reference, latest.current)
        # Without a time to live, every request gets here, and only a change is stored.
        if is_new := record is None or record.current.identity != term.identity:
            await self._write_commit(reference, term)
        if is_new or self._time_to_live:
            await self._records.write(reference, PinRecord(current=term))
        return self._hold(reference, term)

    async def _refresh(self, reference: Reference) -> None:
        try:
            found = await self._records.read(reference)
            record = found and found.at(self._clock())
            if record is None or record.next is not None:
                return
            term = await self._look_up(reference, record.current.until)
            # Prefer a pin that was recorded during the look-up, since all others use it.
            if await self._records.read(reference) == found:
                if record.current.identity != term.identity:
                    await self._write_commit(reference, term)
                await self._records.write(reference, PinRecord(current=record.current, next=term))
                self._report(reference, term.pin(self._source.description))
        except NixeryError as error:
            _log.warning("pin not refreshed", reference=redacted(reference.name), reason=str(error))

    async def _ask(self, reference: Reference) -> Pin:
        async with (self._bounds.commits if reference.rule else self._bounds.tags).slot():
            # Clients choose other tags, which may fail for reasons of their own.
            if reference != self._source.reference(DEFAULT_TAG):
                return await self._source.resolve(reference)
            return await self._noting(self._source.resolve(reference))

    async def _noting(self, question: Awaitable[Answer]) -> Answer:
        """Ask the source about the default tag, and note whether it answered."""
        try:
            answer = await question
        except TagUnknown:
            self._contact = _Contact(self._clock() + _ANSWER_KEPT)
            raise
        except NixeryError as error:
            self._contact = _Contact(self._clock() + _FAILURE_KEPT, str(error))
            raise
        self._contact = _Contact(self._clock() + _ANSWER_KEPT)
        return answer

    async def _try_contact(self) -> None:
        reference = self._source.reference(DEFAULT_TAG)
        try:
            async with self._bounds.tags.slot():
                await self._noting(self._source.require_reachable(reference))
        except NixeryError:
            pass  # noted, unless the server is too busy to ask
        finally:
            self._contacting = None

    async def _look_up(self, reference: Reference, start: float) -> Term:
        pin = await self._ask(reference)
        source, name = redacted(pin.source), redacted(reference.name)
        _log.info("pinned", source=source, reference=name, revision=pin.revision)
        return Term.of(pin, start + self._time_to_live)

    async def _write_commit(self, reference: Reference, term: Term) -> None:
        """Record the pinned commit of a branch or tag under its own digits as well.

        Clients may ask for it later, even when no branch leads to it any more. That is one record for each
        state of the source that the server saw; clients cannot add more.
        """
        if not reference.moving or COMMIT.fullmatch(term.revision) is None:
            return
        try:
            commit = self._source.reference(term.revision)
        except TagUnknown:
            return  # the source accepts no commits as tags
        if commit.rule:
            await self._records.write(commit, PinRecord(current=term))

    def _hold(self, reference: Reference, term: Term) -> Pinned:
        pinned = Pinned(term.pin(self._source.description))
        self._report(reference, pinned.pin)
        if reference.moving:
            self._revisions[reference] = pinned.pin.revision
        if not reference.moving:
            self._held.put(reference, _Held(pinned, math.inf), _SIZE)
        elif (remaining := term.until - self._clock()) > 0:
            self._held.put(reference, _Held(pinned, term.until), _SIZE)
            delay = max(0.0, remaining - (1 - _REFRESH) * self._time_to_live)
            if reference in self._timers:
                self._timers[reference].cancel()
            self._timers[reference] = asyncio.get_running_loop().call_later(delay, self._due, reference)
        return pinned

    def _report(self, reference: Reference, pin: Pin) -> None:
        if not reference.rule:
            for watcher in self._watchers:
                watcher(pin, reference == self._source.reference(DEFAULT_TAG))

    def _due(self, reference: Reference) -> None:
        del self._timers[reference]
        held = self._held.get(reference)
        if held is not None and held.used:
            self._start_refresh(reference)
        elif held is not None:
            held.due = True

    def _start_refresh(self, reference: Reference) -> None:
        task = asyncio.get_running_loop().create_task(self._refresh(reference))
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)
