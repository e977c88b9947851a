"""The package index: every attribute of a state of the package source, evaluated before a client asks for it.

An index is one record with all names and what a search shows of them (kind ``packages``), and parts with
everything else (kind ``package-details``), a line for each attribute. A part is written once, when Nix has
evaluated its attributes. So an interrupted run continues with the missing parts, and servers on one storage share
the work: each begins with another part.

A request reads one line of one part. A server's memory holds the names, versions and descriptions of a few
states.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

import cachetools
import structlog
import zstandard
from pydantic import BaseModel, Field

from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.caching import SingleFlight, TTLCache, size_of_error
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    EvaluationFailed,
    NixeryError,
    PackageSetChanged,
    PackageSetError,
    Reason,
    SourceUnreachable,
    StorageError,
    TooBusy,
    UnavailablePackage,
)
from nixery.image.platform import Platform
from nixery.image.spelling import AttributeNames, NearNames
from nixery.nix.indexing import AttributePath, IndexEvaluation, Reported, parse_entry
from nixery.nix.packages import Attribute, Definition, EvaluatedItem, Package
from nixery.nix.realisation import Nix
from nixery.oci.documents import canonical_json
from nixery.source_location import redacted
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import PACKAGE_DETAILS, PACKAGES, RecordStore, decode

# Attributes of a part. One process evaluates them: it evaluates once what they have in common, and its memory is
# bounded.
PART = 1000

# Attributes of an index, and names on the way to one. nixpkgs has 100,000, most of them in five sets.
_MOST_ATTRIBUTES, _DEEPEST = 300_000, 4

# Attributes of a state that end the evaluation; each costs a process. In nixpkgs, a few hundred of 100,000 do.
_MOST_FAILURES = 10_000

# Lists of names, concurrent and queued: each evaluates the top of a package set.
_AT_ONCE, _QUEUE = 1, 4

# States that wait to be evaluated; the oldest ones make room.
_MOST_WAITING = 4

# Bytes of remembered failures.
_FAILURES = 1024 * 1024

# States in memory, and in the storage.
_IN_MEMORY, _STORED = 3, 5

# Characters of all descriptions, programs and reasons in the rows of an index; later rows have none.
_MOST_TEXT = 64 * 1024 * 1024

# Bytes after decompression: of a part, of the names in a record, of the rows, and of one line of a part or of the
# rows. nixpkgs has 3 MB of names and 20 MB of rows. While it is parsed, a text that another program wrote may take
# hundreds of times its size.
_LARGEST_PART = 128 * 1024 * 1024
_LARGEST_HEADER, _LARGEST_ROWS, _LARGEST_LINE = 16 * 1024 * 1024, 48 * 1024 * 1024, 256 * 1024

# Seconds after which a run that failed is tried again.
_COOLDOWN = 60.0

# Seconds for which the versions in the stored indexes are not read again.
_VERSIONS_TTL = 10.0

# Failed attributes in a report of the progress.
_SHOWN_FAILURES = 100

# The reason if a failure has no message.
_UNKNOWN = "evaluation failed"

# Failed attributes that the log names.
_LOGGED_FAILURES = 5

# A record begins with this line, and then the names for completion in a shell: one in a line, then an empty line.
HEADER = b"nixery package index 1\n"

_log = structlog.get_logger("nixery.index")

Names = list[tuple[AttributePath, list[str]]]


class _Row(BaseModel):
    """What a search and the progress need to know about an attribute; outputs and name only while it is made."""

    path: AttributePath
    kind: str
    version: str = ""
    description: str = ""
    programs: tuple[str, ...] = ()
    reason: str = ""
    alias_of: AttributePath = ()
    recurse: bool = Field(default=False, exclude=True)
    identity: str = Field(default="", exclude=True)
    is_original: bool = Field(default=False, exclude=True)


class _Failure(BaseModel):
    """The line of an attribute whose evaluation failed."""

    error: str


class _Header(BaseModel):
    """An index without its rows.

    Attributes:
        source: the source of its pin.
        revision: likewise.
        created: likewise.
        rounds: the sets whose attributes were listed at a time, with the names in them. Sets of one round were
            found in the one before.
        is_complete: whether every attribute has a row.
    """

    source: str
    revision: str
    created: int | None
    rounds: list[Names]
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an index.

    Attributes:
        revision: the state of the source.
        attributes: as many as are known so far.
        evaluated: number of these.
        failures: attributes whose evaluation failed, and the reasons; those at the top of the package set first, at
            most 100.
        failed: number of all of them.
        is_complete: whether all attributes are evaluated.
    """

    revision: str
    attributes: int
    evaluated: int
    failures: tuple[tuple[str, str], ...]
    failed: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """The version of a package in one state of the source.

    Attributes:
        revision: the state of the source.
        version: of the package.
        created: the date of the state in seconds since the epoch, if it is known.
        tag: a tag that stands for that state now; empty if there is none.
    """

    revision: str
    version: str
    created: int | None
    tag: str = ""


@dataclass(frozen=True, slots=True)
class _StateVersions:
    """The versions of all packages of a state, and the time when its index was stored."""

    header: _Header
    versions: Mapping[AttributePath, str]
    modified: float


class StateIndex:
    """The index of one state of the source, as far as it is made.

    Requests need the names alone, so rows and the search are made when they are first used: call ``prepare`` in
    a thread before.

    Args:
        key: of its record.
        header: its names.
        rows: returns what is known about attributes.
    """

    def __init__(self, key: str, header: _Header, rows: Callable[[], Iterable[_Row]] = tuple) -> None:
        self.key = key
        self.header = header
        self._read_rows = rows
        self._progress: Progress | None = None
        self._text = 0
        self._list()

    @classmethod
    def listed(cls, key: str, pin: Pin, names: Names) -> StateIndex:
        """Make the index of a state of which only names are known."""
        return cls(
            key, _Header(source=pin.source, revision=pin.revision, created=pin.created, rounds=[names])
        )

    @cached_property
    def rows(self) -> dict[AttributePath, _Row]:
        """What is known about attributes."""
        return {row.path: row for row in self._read_rows()}

    @cached_property
    def search(self) -> PackageSearch:
        """Searches the rows as they were at its first use."""
        return PackageSearch(self._found())

    def copy(self) -> StateIndex:
        """Return an index that may change independently."""
        header = self.header.model_copy(update={"rounds": list(self.header.rounds)})
        rows = list(self.rows.values())
        return StateIndex(self.key, header, lambda: rows)

    def prepare(self) -> StateIndex:
        """Make rows and search; return this index."""
        _ = self.search
        return self

    def add(self, names: Names) -> None:
        """Add a round of names."""
        self.header.rounds.append(names)
        self._list()

    def add_rows(self, rows: Iterable[_Row]) -> None:
        """Add rows; above the limit, without what searches could do without."""
        for row in rows:
            before = self.rows.get(row.path)
            text = self._text + _text_of(row) - (_text_of(before) if before is not None else 0)
            if text > _MOST_TEXT:
                row = row.model_copy(update={"description": "", "programs": (), "reason": row.reason[:80]})  # noqa: PLW2901 -- the same row
            else:
                self._text = text
            self.rows[row.path] = row

    def path(self, name: str) -> AttributePath | None:
        """Return the attribute that a component of an image name selects; ``None`` if it leads out of the index."""
        return self._names.resolve(name)

    def part_of(self, path: AttributePath) -> tuple[str, int] | None:
        """Return the key of the part that has an attribute, and its line there."""
        number = self._number.get(path)
        if number is None:
            return None
        part = bisect_right(self._starts, number) - 1
        return self.parts[part][0], number - self._starts[part]

    @cached_property
    def near_names(self) -> NearNames:
        """The names at the top of the package set."""
        return NearNames("", next((names for path, names in self.header.rounds[0] if not path), ()))

    @property
    def progress(self) -> Progress:
        """How far it is."""
        known, current = self._progress, (len(self._number), len(self.rows), self.header.is_complete)
        # Every search shows it, and rows are only added.
        if known is None or (known.attributes, known.evaluated, known.is_complete) != current:
            failed = [row for row in self.rows.values() if row.kind == "failed"]
            failed.sort(key=lambda row: (len(row.path), row.path))
            self._progress = known = Progress(
                revision=self.header.revision,
                attributes=len(self._number),
                evaluated=len(self.rows),
                failures=tuple((".".join(row.path), row.reason) for row in failed[:_SHOWN_FAILURES]),
                failed=len(failed),
                is_complete=self.header.is_complete,
            )
        return known

    def sets_to_enter(self) -> list[AttributePath]:
        """Return the sets of packages whose names are not listed, up to the limits."""
        known = {path for names in self.header.rounds for path, _ in names}
        found = [row.path for row in self.rows.values() if row.recurse and len(row.path) < _DEEPEST]
        return sorted(set(found) - known) if self.room else []

    @property
    def room(self) -> int:
        """The number of attributes that may still be added."""
        return max(0, _MOST_ATTRIBUTES - len(self._number))

    def complete(self) -> None:
        """Mark aliases: of the attributes that are the same package, the one with the package's own name is no alias."""
        same: dict[str, list[_Row]] = {}
        for row in self.rows.values():
            if row.identity:
                same.setdefault(row.identity, []).append(row)
        for rows in same.values():
            original = min(
                rows, key=lambda row: (not row.is_original, len(row.path), len("".join(row.path)), row.path)
            )
            for row in rows:
                row.alias_of = original.path if row is not original else ()
        self.header.is_complete = True

    def encoded(self) -> bytes:
        """Encode the record.

        Raises:
            StorageError: no server would read it, since it is too large.
        """
        names = "\n".join(package.name for package in self.search).encode()
        header = _compressed(self.header.model_dump_json().encode(), _LARGEST_HEADER)
        rows = [row.model_dump_json(exclude_defaults=True).encode() for row in self.rows.values()]
        if len(self._number) >= _MOST_ATTRIBUTES:
            raise StorageError(
                f"cannot write the record of a package index: it has {len(self._number)} names, and {_MOST_ATTRIBUTES} is the limit"
            )
        compressed = _compressed(b"\n".join(rows), _LARGEST_ROWS)
        return b"".join((HEADER, names, b"\n\n", b"%016x" % len(header), header, compressed))

    def _list(self) -> None:
        """Number all attributes, and cut each round into parts."""
        self._names = AttributeNames({path: names for round_ in self.header.rounds for path, names in round_})
        self._number: dict[AttributePath, int] = {}
        self._starts: list[int] = []
        self.parts: list[tuple[str, Sequence[AttributePath]]] = []
        for round_ in self.header.rounds:
            paths = [
                path
                for set_, names in round_
                for name in names
                if (path := (*set_, name)) not in self._number
            ]
            first = len(self._number)
            self._number.update((path, first + number) for number, path in enumerate(paths))
            for start in range(0, len(paths), PART):
                part = paths[start : start + PART]
                key = hashlib.sha256(canonical_json([self.key, part])).hexdigest()
                self._starts.append(first + start)
                self.parts.append((key, part))

    def _found(self) -> Iterator[FoundPackage]:
        found = set()
        for path in self._number:
            row = self.rows.get(path)
            if row is not None and row.kind in {"set", "other"}:
                continue
            name = self._names.spell(path)
            if name is None or name in found:
                continue
            found.add(name)
            if row is None:
                yield FoundPackage(name, ".".join(path))
            else:
                alias_of = self._names.spell(row.alias_of) if row.alias_of else None
                yield FoundPackage(
                    name,
                    ".".join(path),
                    row.version,
                    row.description,
                    row.programs,
                    row.reason,
                    alias_of or "",
                )


def decode_index(content: bytes, key: str = "") -> StateIndex:
    """Decode the record of an index; torn rows are read again from the parts.

    Raises:
        ValueError: it is torn, or has another schema.
    """
    header, rows = _split(content)
    return StateIndex(key, header, lambda: decode(_decode_rows, rows) or ())


def decode_header(content: bytes) -> _Header:
    """Decode the record of an index without its rows.

    Raises:
        ValueError: see ``decode_index``.
    """
    return _split(content)[0]


def validate_index(content: bytes) -> Sequence[object]:
    """Check the record of an index, rows included; return the rows.

    Raises:
        ValueError: it is torn, or has another schema.
    """
    if content.startswith(b'{"') and content.endswith(b"}}"):
        return ()  # of an earlier version: not torn, and replaced by the next index
    return _decode_rows(_split(content)[1])


def _split(content: bytes) -> tuple[_Header, bytes]:
    if not content.startswith(HEADER):
        raise ValueError("not the record of an index")
    # The header's own line break may be the first of an empty line, if there are no names.
    start = content.index(b"\n\n", len(HEADER)) + 2
    first = start + 16
    second = first + int(content[start:first], 16)
    text = _decompressed(content[first:second], _LARGEST_HEADER)
    if text.count(b",") > _MOST_ATTRIBUTES:
        raise ValueError(f"the record of an index has more than {_MOST_ATTRIBUTES} names")
    header = _Header.model_validate_json(text)
    if not header.rounds:
        raise ValueError("the record of an index has no names")
    return header, content[second:]


def _decode_rows(content: bytes) -> list[_Row]:
    # One at a time: the errors of all of them would fill the memory.
    lines = _lines(content, _LARGEST_ROWS, _MOST_ATTRIBUTES)
    return [_Row.model_validate_json(line) for line in lines if line]


def decode_part(content: bytes) -> list[bytes]:
    """Decode a part: a line for each attribute.

    Raises:
        ValueError: it is torn.
    """
    return _lines(content, _LARGEST_PART, PART)


def _lines(content: bytes, limit: int, most: int) -> list[bytes]:
    text = _decompressed(content, limit)
    if text.count(b"\n") >= most:
        raise ValueError(f"more than {most} lines")
    lines = text.split(b"\n")
    longest = max(map(len, lines))
    if longest > _LARGEST_LINE:
        raise ValueError(f"a line of {longest} bytes; {_LARGEST_LINE} is the limit")
    return lines


def _compressed(text: bytes, limit: int) -> bytes:
    if len(text) > limit:
        raise StorageError(
            f"cannot write the record of a package index: it has {len(text)} bytes, and {limit} is the limit"
        )
    return zstandard.compress(text)


def _decompressed(content: bytes, limit: int) -> bytes:
    try:
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= limit:
            raise ValueError(f"{size} bytes after decompression; {limit} is the limit")
        return zstandard.decompress(content, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


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
        processes: concurrent processes of Nix.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.

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
    ) -> None:
        self._pins = pins
        self._source = source
        self._nix = nix
        self._platform = platform
        self._records = records
        self._identity = canonical_json([identity, *sets]).decode()
        self._sets = [(), *sets]
        self._processes = processes or os.cpu_count() or 1
        self._failure_time_to_live = failure_time_to_live
        self._failures: TTLCache[Pin, BuildError] = TTLCache(_FAILURES, clock)
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LISTINGS)
        self._recent: cachetools.LRUCache[Pin, StateIndex] = cachetools.LRUCache(_IN_MEMORY)
        self._in_flight: SingleFlight[Pin, StateIndex | None] = SingleFlight()
        # Besides the complete indexes, as many others may be stored.
        self._versions: cachetools.LRUCache[tuple[str, float], _StateVersions] = cachetools.LRUCache(
            2 * _STORED
        )
        self._known_versions: cachetools.TTLCache[None, Sequence[_StateVersions]] = cachetools.TTLCache(
            1, _VERSIONS_TTL, clock
        )
        self._reading_versions: SingleFlight[None, Sequence[_StateVersions]] = SingleFlight()
        self._waiting: deque[Pin] = deque(maxlen=_MOST_WAITING)
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

    async def versions(self, tag: str, name: str) -> list[PackageVersion]:
        """Return the versions of a package in all states whose indexes are stored, the latest state first.

        Raises:
            NixeryError: see ``names``.
        """
        path = (await self._state(await self._pin(tag))).path(name)
        return [] if path is None else self._versions_of(path, await self._stored_versions())

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
        return {
            name: found for name, path in paths.items() if path and (found := self._versions_of(path, stored))
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

    async def find(
        self, pin: Pin, platform: Platform, name: str, *, realisable: bool = True
    ) -> Sequence[EvaluatedItem] | None:
        """Return what an evaluation of a name would return; ``None`` if only an evaluation can tell.

        Args:
            pin: the state of the source.
            platform: that packages are built for.
            name: a component of an image name.
            realisable: whether Nix has to be able to provide the packages: their derivations exist, or their
                outputs do.

        Raises:
            StorageError: the storage cannot be read.
        """
        if platform != self._platform:
            return None
        state = self._recent.get(pin) or await self._in_flight.run(pin, partial(self._stored, pin))
        if state is None:
            return None
        path = state.path(name)
        if path is None:
            if state.path(name.partition(".")[0]) is not None:
                return None  # in a set that is not in the index
            near = await asyncio.to_thread(lambda: state.near_names.of(name))
            return [UnavailablePackage(name, Reason.MISSING, near_names=near)]
        attribute = await self._read(state, path)
        if attribute is None or attribute.items is None:
            return None
        items = [
            replace(item, requested_name=name)
            for item in attribute.items
            if not isinstance(item, UnavailablePackage)
        ]
        return await asyncio.to_thread(_realisable, items) if realisable else items

    def want(self, pin: Pin) -> None:
        """Have a state evaluated in the background."""
        state = self._recent.get(pin)
        if pin not in self._waiting and not (state and state.header.is_complete):
            self._waiting.append(pin)
            self._wanted.set()

    async def run(self) -> None:
        """Evaluate the states that are wanted, beginning with the one of the default tag, for ever."""
        with suppress(NixeryError):  # the first request reports it
            self.want((await self._pins.pin("latest")).pin)
        while True:
            while not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
            pin = self._waiting.pop()
            try:
                await self.evaluate(pin)
            except PackageSetChanged:
                pass  # the pin that replaces it is wanted, too
            except NixeryError as error:
                _log.warning("package set not indexed", revision=redacted(pin.revision), reason=str(error))
                await asyncio.sleep(_COOLDOWN)
                # The package set would fail again.
                is_final = isinstance(error, PackageSetError) and not isinstance(error, SourceUnreachable)
                if not is_final and len(self._waiting) < _MOST_WAITING and pin not in self._waiting:
                    self._waiting.appendleft(pin)
            except Exception:  # noqa: BLE001 -- logged with its traceback
                # Keep running: no caller would notice that the task has ended.
                _log.exception("indexing failed", revision=redacted(pin.revision))
                await asyncio.sleep(_COOLDOWN)

    async def evaluate(self, pin: Pin) -> None:
        """Evaluate all attributes of a state; continue where an earlier run ended.

        Raises:
            PackageSetChanged: that state no longer exists.
            NixeryError: Nix cannot evaluate the package set, or the source does not answer.
        """
        # Requests use the other one meanwhile.
        state = await asyncio.to_thread((await self._state(pin)).copy)
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
            evaluation = await self._nix.indexing(self._platform, package_set)
            done, entered = 0, set[AttributePath]()
            while True:
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
        await self._store(pin, state)
        self.progress = state.progress
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
        await asyncio.gather(self._in_flight.close(), self._reading_versions.close())

    async def _pin(self, tag: str) -> Pin:
        return (await self._pins.pin(tag)).pin

    async def _state(self, pin: Pin) -> StateIndex:
        state = self._recent.get(pin) or await self._in_flight.run(pin, partial(self._stored, pin))
        if state is None:
            state = await self._in_flight.run(pin, partial(self._listed, pin))
        if state is None:
            raise AssertionError("listing returns an index, or raises")
        return await asyncio.to_thread(state.prepare)

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
            self._recent[pin] = state
        return state

    async def _listed(self, pin: Pin) -> StateIndex:
        failure = self._failures.get(pin)
        if failure is not None:
            raise failure.without_frames()
        try:
            async with self._slots.slot(), self._source.open(pin) as package_set:
                evaluation = await self._nix.indexing(self._platform, package_set)
                names = await _names_in(evaluation, self._sets, _MOST_ATTRIBUTES)
        except BuildError as error:
            # The search field sends a request for each key that a user types.
            self._failures.put(pin, error.without_frames(), size_of_error(error), self._failure_time_to_live)
            raise
        state = await asyncio.to_thread(StateIndex.listed, self._key(pin), pin, names)
        return await self._store(pin, state)

    async def _store(self, pin: Pin, state: StateIndex) -> StateIndex:
        """Make what is known searchable, here and on other servers; return what searches use."""
        made = await asyncio.to_thread(state.copy)
        self._recent[pin] = await asyncio.to_thread(made.prepare)
        # With a full storage, the index works from memory.
        with suppress(StorageError):
            await self._records.put(PACKAGES, made.key, await asyncio.to_thread(made.encoded))
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
                rows = await asyncio.to_thread(_rows, paths, lines)
                state.add_rows(rows)
                self.progress = state.progress
                if len(state.rows) > 2 * searchable:
                    searchable = len(state.rows)
                    await self._store(pin, state)

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
        if lines is not None and len(lines) == len(paths):
            return lines
        found: list[Reported] = []
        left = max(0, _MOST_FAILURES - state.progress.failed)
        await evaluation.describe(paths, found.append, left)
        await self._source.confirm(pin)
        lines = [_line(reported) for reported in found]
        with suppress(StorageError):
            content = await asyncio.to_thread(zstandard.compress, b"\n".join(lines))
            await self._records.put(PACKAGE_DETAILS, key, content)
        return lines

    async def _read(self, state: StateIndex, path: AttributePath) -> Attribute | None:
        located = state.part_of(path)
        if located is None:
            return None
        key, number = located
        content = await self._records.get(PACKAGE_DETAILS, key)
        return await asyncio.to_thread(_attribute_of, content, path, number)

    def _versions_of(self, path: AttributePath, states: Sequence[_StateVersions]) -> list[PackageVersion]:
        tags = self._pins.tags
        found: dict[PackageVersion, None] = {}
        for state in states:
            header, version = state.header, state.versions.get(path)
            if version:
                tag = tags.get(header.revision) or self._pins.exact_tag(header.revision) or ""
                found.setdefault(PackageVersion(header.revision, version, header.created, tag), None)
        return list(found)

    async def _stored_versions(self) -> Sequence[_StateVersions]:
        """Read the versions in all stored indexes of this source, the latest state first."""
        known = self._known_versions.get(None)
        return known if known is not None else await self._reading_versions.run(None, self._read_versions)

    async def _read_versions(self) -> Sequence[_StateVersions]:
        listed = sorted([(record.modified, record.key) async for record in self._records.scan(PACKAGES)])
        found = []
        for modified, key in listed[-2 * _STORED :]:
            state = self._versions.get((key, modified))
            if state is None:
                content = await self._records.get(PACKAGES, key)
                state = await asyncio.to_thread(decode, partial(_versions, modified=modified), content)
            if state is not None:
                self._versions[key, modified] = state
                if state.header.source == self._source.description:
                    found.append(state)
        found.sort(
            key=lambda state: (state.header.created or state.modified, state.header.revision), reverse=True
        )
        self._known_versions[None] = found
        return found

    async def _evict(self) -> None:
        """Keep the last complete indexes, and the last other ones: clients cause these, with commits that they choose."""
        stored = sorted([(record.modified, record.key) async for record in self._records.scan(PACKAGES)])
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


def _line(reported: Reported) -> bytes:
    if reported.entry is not None:
        return reported.entry
    # Nix sorts names of members, so its own lines begin with another one.
    return json.dumps({"error": reported.error, "path": reported.path}).encode()


def _attribute(path: AttributePath, line: bytes) -> Attribute:
    if line.startswith(b'{"error"'):
        failure = decode(_Failure.model_validate_json, line)
        return Attribute(path, "failed", reason=failure.error if failure and failure.error else _UNKNOWN)
    return parse_entry(path, line)


def _attribute_of(content: bytes | None, path: AttributePath, number: int) -> Attribute | None:
    lines = decode(decode_part, content)
    if lines is None or number >= len(lines):
        return None
    return decode(partial(_attribute, path), lines[number])


def _text_of(row: _Row) -> int:
    return len(row.description) + len(row.reason) + sum(map(len, row.programs))


def _rows(paths: Sequence[AttributePath], lines: Sequence[bytes]) -> list[_Row]:
    return [_row(_attribute(path, line)) for path, line in zip(paths, lines, strict=True)]


def _row(attribute: Attribute) -> _Row:
    programs = dict.fromkeys((attribute.main_program, *attribute.programs))
    return _Row(
        path=attribute.path,
        kind=attribute.kind,
        version=attribute.version,
        description=attribute.description,
        programs=tuple(program for program in programs if program),
        reason=attribute.reason,
        recurse=attribute.recurse,
        # Packages of Debian that depend on each other are one derivation, but no other names of each other.
        identity="\0".join((attribute.name, attribute.description, *attribute.outputs.values()))
        if attribute.kind == "package" and attribute.outputs
        else "",
        is_original=attribute.path[-1].lower() == attribute.name.lower(),
    )


def _versions(content: bytes, modified: float) -> _StateVersions:
    header, rows = _split(content)
    return _StateVersions(
        header, {row.path: row.version for row in _decode_rows(rows) if row.version}, modified
    )


def _realisable(items: Sequence[Package | Definition]) -> Sequence[EvaluatedItem] | None:
    """Return items if Nix can realise them without an evaluation."""
    found: list[EvaluatedItem] = []
    for item in items:
        match item:
            case Package():
                if not os.path.lexists(str(item.derivation)):
                    if not all(os.path.lexists(str(path)) for path in item.outputs.values()):
                        return None
                    item = replace(item, is_realised=True)  # noqa: PLW2901 -- the same package
                found.append(item)
            case Definition():
                derivations = {installable.partition("!")[0] for installable in item.installables}
                if not all(map(os.path.lexists, derivations)):
                    return None
                found.append(item)
    return found
