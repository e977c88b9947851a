"""The package index: every attribute of a state of the package source, evaluated before a client asks for it.

An index has a record with all names, and parts with everything else (``index_records``). A part is written once,
when Nix has evaluated its attributes. So an interrupted run continues with the missing parts, and servers on one
storage share the work: each begins with another part.

A request reads one line of one part. A server's memory holds the names, versions and descriptions of a few
states.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import cachetools
import structlog
import zstandard

from nixery.builds.index_records import (
    MOST_ATTRIBUTES,
    Names,
    PackageVersion,
    Progress,
    StateIndex,
    StateVersions,
    attribute_of,
    decode_header,
    decode_index,
    decode_part,
    decode_versions,
    encode_line,
    rows_of,
)
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.pins import DEFAULT_TAG, Pins
from nixery.builds.slots import Slots
from nixery.caching import SingleFlight, TTLCache, size_of_error
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    EvaluationFailed,
    NixeryError,
    PackageSetChanged,
    PackageSetError,
    SourceUnreachable,
    StorageError,
    TooBusy,
    UnavailablePackage,
)
from nixery.image.meta_packages import FACTS
from nixery.image.platform import Platform
from nixery.image.spelling import RESERVED, missing_package
from nixery.nix.indexing import AttributePath, IndexEvaluation, Reported
from nixery.nix.packages import Attribute, Definition, EvaluatedItem, Facts, MetaPackageFound, Package
from nixery.nix.realisation import Nix
from nixery.oci.documents import canonical_json
from nixery.source_location import redacted
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import PACKAGE_DETAILS, PACKAGES, RecordStore, decode

# Attributes of a state that end the evaluation; each costs a process. In nixpkgs, a few hundred of 100,000 do.
_MOST_FAILURES = 10_000

# Lists of names, concurrent and queued: each evaluates the top of a package set.
_AT_ONCE, _QUEUE = 1, 4

# Searches that are made at once, and that wait: one of 100,000 packages takes seconds of the interpreter lock.
_MADE_AT_ONCE, _MADE_LATER = 1, 16

# Parts that requests read at once, and that wait: each takes up to a hundred megabytes, and one request may name 128
# packages.
_READ_AT_ONCE, _READ_LATER = 2, 16_384

# States that wait to be evaluated; the oldest ones make room.
_MOST_WAITING = 4

# Bytes of remembered failures.
_FAILURES = 1024 * 1024

# States in memory, and in the storage.
_IN_MEMORY, _STORED = 3, 5

# Bytes of the parts of a state in the storage. A client that asks for a package of another part waits for its
# evaluation.
_LARGEST_STATE = 256 * 1024 * 1024

# Seconds after which another state that waits is evaluated. A run continues where an earlier one ended.
_TURN = 7200.0

# Seconds after which a run that failed is tried again.
_COOLDOWN = 60.0

# Seconds for which the versions in the stored indexes are not read again.
_VERSIONS_TTL = 10.0

# Failed attributes that the log names.
_LOGGED_FAILURES = 5

# Attributes of a set whose derivations are written unless the operator decides: some ten megabytes.
_FEW = 2000

_log = structlog.get_logger("nixery.index")


@dataclass(frozen=True, slots=True)
class NameLookup:
    """Whether a package set has a name.

    Attributes:
        exists: ``None`` if only an evaluation can tell.
        reason: why the package is not available; empty if it is, or if that is not known yet.
    """

    exists: bool | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DefaultState:
    """The state that the default tag stands for.

    Attributes:
        pin: the state.
        since: when this server began to serve it, in seconds since the epoch.
        progress: of its index; ``None`` while it is being listed.
        is_only: whether the source has no other state, whatever the tag.
    """

    pin: Pin
    since: float
    progress: Progress | None
    is_only: bool = False


class PackageIndex:
    """The indexes of the states that a package source is pinned to.

    The names of a state are listed when somebody searches it. Everything else is evaluated in the background,
    one state at a time: for the states that the source's own tags stand for, not for commits that clients choose.

    Args:
        pins: of tags.
        source: provides package sets.
        nix: evaluates them.
        platform: whose packages are indexed.
        records: shared by all servers.
        identity: of this program and its options, which determine what an evaluation returns.
        sets: besides the top of the package set, and besides the sets that ask for it.
        write_derivations: whether an index writes derivations to the Nix store, so that first builds need no
            evaluation; ``None`` for small package sets.
        processes: concurrent processes of Nix.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
        public: whether clients may see which other tags and states were requested.

    Attributes:
        progress: of the state that was evaluated last; ``None`` before the first.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- everything that an index depends on
        self,
        pins: Pins,
        source: PackageSource,
        nix: Nix,
        platform: Platform,
        records: RecordStore,
        identity: str,
        sets: Sequence[AttributePath] = (),
        processes: int | None = None,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
        *,
        write_derivations: bool | None = None,
        substitutes: bool = False,
        public: bool = True,
    ) -> None:
        self._pins = pins
        self._public = public
        self._source = source
        self._nix = nix
        self._platform = platform
        self._records = records
        self._identity = canonical_json([identity, *sets]).decode()
        self._write_derivations = write_derivations
        self._substitutes = substitutes
        self._sets = [(), (RESERVED,), *sets]
        self._processes = processes or os.cpu_count() or 1
        self._failure_time_to_live = failure_time_to_live
        self._failures: TTLCache[Pin, BuildError] = TTLCache(_FAILURES, clock)
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LISTINGS)
        self._recent: cachetools.LRUCache[Pin, StateIndex] = cachetools.LRUCache(_IN_MEMORY)
        self._making = Slots(_MADE_AT_ONCE, _MADE_LATER, busy=TooBusy.SEARCHES)
        self._parts = Slots(_READ_AT_ONCE, _READ_LATER, busy=TooBusy.PACKAGES)
        # Separate, since a build must not wait for a list of names, nor fail with one.
        self._reading: SingleFlight[Pin, StateIndex | None] = SingleFlight()
        self._opening: SingleFlight[Pin, StateIndex] = SingleFlight()
        # Besides the complete indexes, as many others may be stored.
        self._versions: cachetools.LRUCache[tuple[str, float], StateVersions] = cachetools.LRUCache(
            2 * _STORED
        )
        self._known_versions: cachetools.TTLCache[None, Sequence[StateVersions]] = cachetools.TTLCache(
            1, _VERSIONS_TTL, clock
        )
        self._reading_versions: SingleFlight[None, Sequence[StateVersions]] = SingleFlight()
        self._waiting: deque[Pin] = deque(maxlen=_MOST_WAITING)
        self._wanted_first: Pin | None = None
        # The state that most requests need. Clients that name others must not displace it.
        self._default_state: Pin | None = None
        self._default_since = 0.0
        pins.watch(self._watch)
        self._wanted = asyncio.Event()
        self.progress: Progress | None = None

    async def names(self, tag: str) -> PackageSearch:
        """Return what a tag's package set has. Listing the names of a state for the first time takes a second.

        Raises:
            TooBusy: the queue for listing is full.
            NixeryError: the package set cannot be opened or listed, now or a moment ago.
        """
        return (await self._state(await self._pin(tag))).search

    async def attribute(self, tag: str, name: str) -> tuple[FoundPackage, Attribute | None] | None:
        """Describe a package; ``None`` if the package set has none of that name. Details are there once it is evaluated.

        Raises:
            NixeryError: see ``names``.
        """
        state = await self._state(await self._pin(tag))
        path = state.path(name)
        found = state.search.get(name)
        if found is None or path is None:
            return None
        return found, await self._read(state, path)

    async def look_up(self, tag: str, names: Sequence[str]) -> list[NameLookup]:
        """Look components of image names up, without listing a state for them; it reads the storage once at most.

        Raises:
            NixeryError: the tag cannot be pinned, or the storage cannot be read.
        """
        state = await self._known(await self._pin(tag))
        return [NameLookup(None) if state is None else _looked_up(state, name) for name in names]

    async def near_names(self, tag: str, name: str) -> Sequence[str]:
        """Return the names that are most similar to one that a tag's package set lacks: those of the registry's errors.

        Empty for a state that is not listed yet.

        Raises:
            NixeryError: as ``look_up``.
        """
        state = await self._known(await self._pin(tag))
        return () if state is None else await asyncio.to_thread(lambda: state.near_names.of(name))

    async def meta_packages(self, tag: str) -> Sequence[tuple[str, Attribute | None]]:
        """Return the meta-packages of a tag's package set, by name; each is ``None`` before it is evaluated.

        Raises:
            NixeryError: see ``names``.
        """
        state = await self._state(await self._pin(tag))
        return [(name, await self._read(state, path)) for name, path in state.meta_packages]

    async def versions(self, tag: str, name: str) -> list[PackageVersion]:
        """Return the versions of a package in all states whose indexes are stored, the latest state first.

        Raises:
            NixeryError: see ``names``.
        """
        pin = await self._pin(tag)
        path = (await self._state(pin)).path(name)
        if path is None:
            return []
        tags = self._pins.tags
        if not self._public:
            tags = {pin.revision: tag, **_default_of(tags)}
        return self._versions_of(path, await self._stored_versions(), tags)

    async def known_versions(self, names: Sequence[str]) -> Mapping[str, Sequence[PackageVersion]]:
        """Return the versions of packages as ``versions`` does, without listing a state for it.

        Names that no state in memory has are left out.

        Raises:
            StorageError: the storage cannot be read.
        """
        states = list(self._recent.values())
        paths = {name: next(filter(None, (state.path(name) for state in states)), None) for name in names}
        if not any(paths.values()):
            return {}
        stored = await self._stored_versions()
        tags = self._pins.tags if self._public else _default_of(self._pins.tags)
        return {
            name: found
            for name, path in paths.items()
            if path and (found := self._versions_of(path, stored, tags))
        }

    async def state_progress(self, tag: str) -> Progress:
        """Return the progress of a tag's index.

        Raises:
            NixeryError: see ``names``.
        """
        progress = (await self._state(await self._pin(tag))).progress
        current = self.progress
        # What is searchable is a little behind.
        is_ahead = current is not None and current.revision == progress.revision and not progress.is_complete
        return current if current is not None and is_ahead else progress

    @property
    def default_state(self) -> DefaultState | None:
        """The state of the default tag, as far as it is in memory; ``None`` before the first look-up of that tag."""
        pin = self._default_state
        if pin is None:
            return None
        state = self._recent.get(pin)
        progress = None if state is None else state.progress
        return DefaultState(pin, self._default_since, progress, self._pins.ignores_tags)

    async def facts(self, pin: Pin) -> Mapping[str, str]:
        """Return what a package set says of itself, as in ``/etc/os-release``; empty before it is evaluated.

        Raises:
            StorageError: the storage cannot be read.
        """
        items = await self.find(pin, self._platform, FACTS, realisable=False, suggest=False) or ()
        return next((item.os_release for item in items if isinstance(item, Facts)), {})

    async def find(
        self, pin: Pin, platform: Platform, name: str, *, realisable: bool = True, suggest: bool = True
    ) -> Sequence[EvaluatedItem] | None:
        """Return what an evaluation of a name would return; ``None`` if only an evaluation can tell.

        Args:
            pin: the state of the source.
            platform: that packages are built for.
            name: a component of an image name.
            realisable: whether Nix has to be able to provide the packages: their derivations exist, or their
                outputs do.
            suggest: whether a missing name gets near names: a search of all names, with the interpreter lock.

        Raises:
            StorageError: the storage cannot be read.
        """
        if platform != self._platform:
            return None
        state = await self._known(pin)
        if state is None:
            return None
        path = state.path(name)
        if path is None:
            if name.startswith(".") or state.path(name.partition(".")[0]) is not None:
                return None  # in a set that is not in the index
            near = await asyncio.to_thread(lambda: state.near_names.of(name)) if suggest else ()
            return [missing_package(name, near)]
        attribute = await self._read(state, path)
        if attribute is None or attribute.items is None:
            return None
        items = [
            item if isinstance(item, Facts) else replace(item, requested_name=name)
            for item in attribute.items
            if not isinstance(item, UnavailablePackage)
        ]
        return await asyncio.to_thread(_realisable, items, self._substitutes) if realisable else items

    def want(self, pin: Pin, is_default: bool = False) -> None:  # noqa: FBT001, FBT002 -- called by ``Pins.watch``
        """Have a state evaluated in the background; clients name other states, so that of the default tag comes first."""
        state = self._recent.get(pin)
        if state is not None and state.header.is_complete:
            return
        if is_default:
            self._wanted_first = pin
        elif pin not in self._waiting:
            self._waiting.append(pin)
        self._wanted.set()

    async def run(self) -> None:
        """Evaluate the states that are wanted, beginning with the one of the default tag, for ever."""
        with suppress(NixeryError):  # the first request reports it
            self.want((await self._pins.pin("latest")).pin, is_default=True)
        while True:
            while self._wanted_first is None and not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
            pin = self._wanted_first or self._waiting.pop()
            self._wanted_first = None
            try:
                async with asyncio.timeout(_TURN):
                    await self.evaluate(pin)
            except PackageSetChanged:
                pass  # the pin that replaces it is wanted, too
            except TimeoutError:
                _log.warning(
                    "indexing takes too long; other states come first", revision=redacted(pin.revision)
                )
                with suppress(ValueError):  # it was wanted again meanwhile
                    self._waiting.remove(pin)
                if len(self._waiting) < _MOST_WAITING:
                    self._waiting.appendleft(pin)
                await asyncio.sleep(_COOLDOWN)
            except NixeryError as error:
                _log.warning("package set not indexed", revision=redacted(pin.revision), reason=str(error))
                await asyncio.sleep(_COOLDOWN)
                # The package set would fail again.
                is_final = isinstance(error, PackageSetError) and not isinstance(error, SourceUnreachable)
                if not is_final and len(self._waiting) < _MOST_WAITING and pin not in self._waiting:
                    self._waiting.appendleft(pin)
            except Exception:  # noqa: BLE001 -- logged
                # A defect must not end the indexing of all later states without a word.
                _log.exception("package set not indexed", revision=redacted(pin.revision))
                await asyncio.sleep(_COOLDOWN)

    async def evaluate(self, pin: Pin) -> None:
        """Evaluate all attributes of a state; continue where an earlier run ended.

        Raises:
            PackageSetChanged: that state no longer exists.
            NixeryError: Nix cannot evaluate the package set, or the source does not answer.
        """
        # Requests use the other one meanwhile.
        state = await asyncio.to_thread((await self._state(pin)).copy)
        await asyncio.to_thread(state.add_rows)
        self.progress = state.progress
        # The rows of a torn record are read again from the parts.
        if state.header.is_complete and self.progress.evaluated >= self.progress.attributes:
            return
        state.header.is_complete = False
        _log.info(
            "indexing the package set", revision=redacted(pin.revision), attributes=self.progress.attributes
        )
        begun = time.monotonic()
        async with self._source.open(pin) as package_set:
            done, entered = 0, set[AttributePath]()
            while True:
                write = self._write_derivations
                if write is None:
                    # A package set of few attributes may have any number in the sets within it.
                    write = state.room >= MOST_ATTRIBUTES - _FEW
                evaluation = await self._nix.indexing(self._platform, package_set, write_derivations=write)
                parts = state.parts[done:]
                await self._evaluate(pin, state, parts, evaluation)
                done += len(parts)
                # Names in a set may not be listable, although the set evaluates.
                sets = [path for path in await asyncio.to_thread(state.sets_to_enter) if path not in entered]
                if not sets:
                    break
                entered.update(sets)
                names = await _names_in(evaluation, sets, state.room)
                await self._source.confirm(pin)
                await asyncio.to_thread(state.add, names)
        await asyncio.to_thread(state.complete)
        self.progress = (await self._store(pin, state)).progress
        _log.info(
            "indexed the package set",
            revision=redacted(pin.revision),
            attributes=self.progress.attributes,
            failed=self.progress.failed,
            first_failed=", ".join(attribute for attribute, _ in self.progress.failures[:_LOGGED_FAILURES]),
            seconds=round(time.monotonic() - begun, 1),
        )

    async def close(self) -> None:
        """Stop listing."""
        flights = (self._reading, self._opening, self._reading_versions)
        await asyncio.gather(*(flight.close() for flight in flights))

    def _watch(self, pin: Pin, is_default: bool) -> None:  # noqa: FBT001 -- called by ``Pins.watch``
        if is_default:
            if pin != self._default_state:
                self._default_since = time.time()
            self._default_state = pin

    async def _pin(self, tag: str) -> Pin:
        return (await self._pins.pin(tag)).pin

    async def _state(self, pin: Pin) -> StateIndex:
        state = self._recent.get(pin)
        if state is not None and state.is_prepared:
            return state
        return await self._opening.run(pin, partial(self._open, pin))

    async def _open(self, pin: Pin) -> StateIndex:
        state = await self._known(pin)
        if state is None:
            return await self._listed(pin)
        async with self._making.slot():
            return await asyncio.to_thread(state.prepare)

    async def _known(self, pin: Pin) -> StateIndex | None:
        return self._recent.get(pin) or await self._reading.run(pin, partial(self._stored, pin))

    def _key(self, pin: Pin) -> str:
        parts = [self._identity, pin.source, pin.identity, self._platform.nix_system]
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    async def _stored(self, pin: Pin) -> StateIndex | None:
        key = self._key(pin)
        content = await self._records.get(PACKAGES, key)
        if content is None:
            return None
        state = await asyncio.to_thread(decode, partial(decode_index, key=key), content)
        if state is not None:
            self._remember(pin, state)
        return state

    def _remember(self, pin: Pin, state: StateIndex) -> None:
        if self._default_state is not None:
            self._recent.get(self._default_state)  # a use: another state makes room
        self._recent[pin] = state

    async def _listed(self, pin: Pin) -> StateIndex:
        failure = self._failures.get(pin)
        if failure is not None:
            raise failure.without_frames()
        try:
            async with self._slots.slot(), self._source.open(pin) as package_set:
                evaluation = await self._nix.indexing(self._platform, package_set)
                names = await _names_in(evaluation, self._sets, MOST_ATTRIBUTES)
        except BuildError as error:
            # The search field sends a request for each key that a user types.
            self._failures.put(pin, error.without_frames(), size_of_error(error), self._failure_time_to_live)
            raise
        state = await asyncio.to_thread(StateIndex.listed, self._key(pin), pin, names)
        return await self._store(pin, state)

    async def _store(self, pin: Pin, state: StateIndex) -> StateIndex:
        """Make what is known searchable, here and on other servers; return what searches use."""
        made = await asyncio.to_thread(state.copy)
        # If it is too large, or with a full storage, the index works from memory.
        content: bytes | None = None
        with suppress(StorageError):
            content = await asyncio.to_thread(made.settle)
        self._remember(pin, await asyncio.to_thread(made.prepare))
        if content is None:
            return made
        with suppress(StorageError):
            await self._records.put(PACKAGES, made.key, content)
            self._known_versions.clear()
            await self._evict()
        # Others may have displaced it from the cache.
        return made

    async def _evaluate(
        self,
        pin: Pin,
        state: StateIndex,
        parts: Sequence[tuple[str, Sequence[AttributePath]]],
        evaluation: IndexEvaluation,
    ) -> None:
        # Another server may evaluate the same parts.
        first = secrets.randbelow(len(parts)) if parts else 0
        left = deque((*parts[first:], *parts[:first]))
        searchable = 0

        async def work() -> None:
            nonlocal searchable
            while left:
                key, paths = left.popleft()
                lines = await self._part(pin, state, key, paths, evaluation)
                rows = await asyncio.to_thread(rows_of, paths, lines)
                state.add_rows(rows)
                self.progress = state.progress
                if len(state.rows) > 2 * searchable:
                    searchable = len(state.rows)
                    await self._store(pin, state)
                    _log.info(
                        "indexing the package set",
                        revision=redacted(pin.revision),
                        attributes=self.progress.attributes,
                        evaluated=self.progress.evaluated,
                        failed=self.progress.failed,
                    )

        workers = [asyncio.ensure_future(work()) for _ in range(self._processes)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Once: `gather` would also cancel them, and a second cancellation ends the wait for their processes.
            for worker in workers:
                worker.cancel()
            ended = await asyncio.gather(*workers, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def _part(
        self,
        pin: Pin,
        state: StateIndex,
        key: str,
        paths: Sequence[AttributePath],
        evaluation: IndexEvaluation,
    ) -> Sequence[bytes]:
        content = await self._records.get(PACKAGE_DETAILS, key)
        lines = await asyncio.to_thread(decode, decode_part, content)
        if content is not None and lines is not None and len(lines) == len(paths):
            state.stored[key] = len(content)
            return lines
        found: list[Reported] = []
        left = max(0, _MOST_FAILURES - state.progress.failed)
        await evaluation.describe(paths, found.append, left)
        await self._source.confirm(pin)
        lines = [encode_line(reported) for reported in found]
        content = await asyncio.to_thread(zstandard.compress, b"\n".join(lines))
        if sum(state.stored.values()) + len(content) <= _LARGEST_STATE:
            state.stored[key] = len(content)
            with suppress(StorageError):
                await self._records.put(PACKAGE_DETAILS, key, content)
        return lines

    async def _read(self, state: StateIndex, path: AttributePath) -> Attribute | None:
        located = state.part_of(path)
        if located is None:
            return None
        key, number = located
        async with self._parts.slot():
            content = await self._records.get(PACKAGE_DETAILS, key)
            return await asyncio.to_thread(attribute_of, content, path, number)

    def _versions_of(
        self, path: AttributePath, states: Sequence[StateVersions], tags: Mapping[str, str]
    ) -> list[PackageVersion]:
        found: dict[PackageVersion, None] = {}
        for state in states:
            is_shown = self._public or state.revision in tags
            if is_shown and (version := state.of(path)):
                tag = tags.get(state.revision) or self._pins.exact_tag(state.revision) or ""
                found.setdefault(PackageVersion(state.revision, version, state.created, tag), None)
        return list(found)

    async def _stored_versions(self) -> Sequence[StateVersions]:
        """Read the versions in all stored indexes of this source, the latest state first."""
        known = self._known_versions.get(None)
        return known if known is not None else await self._reading_versions.run(None, self._read_versions)

    async def _read_versions(self) -> Sequence[StateVersions]:
        found = []
        for modified, key in await self._newest(2 * _STORED):
            state = self._versions.get((key, modified))
            if state is None:
                content = await self._records.get(PACKAGES, key)
                state = await asyncio.to_thread(decode, partial(decode_versions, modified=modified), content)
            if state is not None:
                self._versions[key, modified] = state
                if state.source == self._source.description:
                    found.append(state)
        found.sort(key=lambda state: (state.date, state.revision), reverse=True)
        self._known_versions[None] = found
        return found

    async def _newest(self, number: int) -> list[tuple[float, str]]:
        """List the records that were written last, the latest one at the end; others may have written millions."""
        found: list[tuple[float, str]] = []
        async for record in self._records.scan(PACKAGES):
            heapq.heappush(found, (record.modified, record.key))
            if len(found) > number:
                heapq.heappop(found)
        return sorted(found)

    async def _evict(self) -> None:
        """Keep the last complete indexes, and the last other ones: clients cause these, with commits that they choose.

        The index of the default tag counts as the last one: clients may name any number of branches.
        """
        default = None if self._default_state is None else self._key(self._default_state)
        # The collector deletes any others.
        stored = await self._newest(4 * _STORED)
        stored.sort(key=lambda one: (one[1] == default, one[0]))
        left = {True: _STORED, False: _STORED}
        for _, key in reversed(stored):
            content = await self._records.get(PACKAGES, key)
            header = await asyncio.to_thread(decode, decode_header, content)
            is_complete = header is not None and header.is_complete
            left[is_complete] -= 1
            if left[is_complete] >= 0:
                continue
            # Another server may work on one that is not complete, and need its parts.
            if is_complete:
                state = await asyncio.to_thread(decode, partial(decode_index, key=key), content)
                for part, _ in state.parts if state else ():
                    await self._records.delete(PACKAGE_DETAILS, part)
            await self._records.delete(PACKAGES, key)


def _looked_up(state: StateIndex, name: str) -> NameLookup:
    if state.path(name) is None:
        # It may be in a set that is not in the index.
        leads_elsewhere = name.startswith(".") or state.path(name.partition(".")[0]) is not None
        return NameLookup(None if leads_elsewhere else False)
    found = state.search.get(name) if state.is_prepared else None
    return NameLookup(True, found.reason if found is not None else "")


def _default_of(tags: Mapping[str, str]) -> Mapping[str, str]:
    return {revision: tag for revision, tag in tags.items() if tag == DEFAULT_TAG}


async def _names_in(evaluation: IndexEvaluation, sets: Sequence[AttributePath], room: int) -> Names:
    """List the names in some sets.

    A set whose evaluation fails, or that has more names than there is room for, has none, unless it is the package
    set itself.
    """
    try:
        found = await evaluation.names(sets)
    except (EvaluationFailed, AnswerTooLarge):
        found = []
        for path in sets:
            try:
                found += await evaluation.names([path])
            except (EvaluationFailed, AnswerTooLarge):
                if not path:
                    raise
                found.append(None)
    listed: Names = []
    for path, names in zip(sets, found, strict=True):
        if names is None:
            continue
        if len(names) > room:
            if not path:
                raise EvaluationFailed(
                    (), f"the package set has {len(names)} attributes; {room} is the limit"
                )
            continue
        room -= len(names)
        listed.append((path, names))
    return listed


def _realisable(
    items: Sequence[Package | Definition | MetaPackageFound | Facts],
    substitutes: bool,  # noqa: FBT001 -- called through ``to_thread``
) -> Sequence[EvaluatedItem] | None:
    """Return items if they can be provided without an evaluation, as far as this machine can tell."""
    found: list[EvaluatedItem] = []
    for item in items:
        match item:
            case Package():
                if not os.path.lexists(str(item.derivation)):
                    outputs = map(str, item.outputs.values())
                    if not substitutes and not all(map(os.path.lexists, outputs)):
                        return None
                    item = replace(item, is_realised=True)  # noqa: PLW2901 -- the same package
                found.append(item)
            case Definition():
                derivations = {installable.partition("!")[0] for installable in item.installables}
                if not all(map(os.path.lexists, derivations)):
                    return None
                found.append(item)
            case _:
                found.append(item)
    return found
