"""The records of the package index: one for each state of the package source, and one for each part of it.

The record of a state (kind ``packages``) begins with the names, for completion in a shell; then come the names of
all sets, and the rows: what a search shows of an attribute. Both are compressed JSON. A part (kind
``package-details``) has everything else, a line for each of its attributes. Other programs may have written either
of them, so each field is validated, and what is torn counts as missing.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from sys import getsizeof
from typing import Annotated

import zstandard
from pydantic import AfterValidator, BaseModel, Field

from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.errors import StorageError
from nixery.image.meta_packages import SHELL
from nixery.image.spelling import RESERVED, AttributeNames, NearNames
from nixery.nix.indexing import AttributePath, Reported, parse_entry
from nixery.nix.packages import Attribute
from nixery.oci.documents import canonical_json
from nixery.sources.source import EARLIEST, LATEST, Pin
from nixery.storage.records import CheckedList, decode, decompressed

# Attributes of a part. One process evaluates them: it evaluates once what they have in common, and its memory is
# bounded.
PART = 1000

# Attributes of an index, and names on the way to one. nixpkgs has 100,000, most of them in five sets.
MOST_ATTRIBUTES, _DEEPEST = 300_000, 4

# Bytes of all versions, descriptions and programs in the rows of an index, each with what Python adds; some 200 for a
# package of nixpkgs or Debian. Later rows have none.
_MOST_TEXT, _OF_A_TEXT = 32 * 1024 * 1024, 64

# Bytes after decompression: of a part, of the names in a record, of the rows, and of one line of a part or of the
# rows. nixpkgs has 3 MB of names and 20 MB of rows. While it is parsed, a text that another program wrote may take
# hundreds of times its size.
_LARGEST_PART = 32 * 1024 * 1024
_LARGEST_HEADER, _LARGEST_ROWS, _LARGEST_LINE = 16 * 1024 * 1024, 48 * 1024 * 1024, 256 * 1024

# Bytes of memory for the distinct versions of a state; those of nixpkgs take 2 MB. Others are unknown.
_MOST_VERSIONS = 8 * 1024 * 1024

# Meta-packages and facts of an index: 64 of the set's own, as ``packages.nix`` bounds them, and those of every set. One
# request reads all of them.
_MOST_RESERVED = 100

# Characters of all names of a path; clients can request 255.
_LONGEST_PATH = 2048

# Commas in the names of a record: between names, around the paths of sets, and within names. They bound the values.
_MOST_COMMAS = 2 * MOST_ATTRIBUTES

# Failed attributes in a report of the progress.
_SHOWN_FAILURES = 100

# The kind of an attribute whose evaluation failed, and the reason if a failure has no message.
_FAILED = "failed"
_UNKNOWN = "evaluation failed"

# A record begins with this line, and then the names for completion in a shell: one in a line, then an empty line.
HEADER = b"nixery package index 1\n"

Names = list[tuple[AttributePath, list[str]]]

# The sets whose attributes a component without dots selects.
_SELECTED_BY_NAME = frozenset({(), (RESERVED,)})


def _bounded(path: AttributePath) -> AttributePath:
    if sum(map(len, path)) + len(path) > _LONGEST_PATH:
        raise ValueError(f"an attribute path of more than {_LONGEST_PATH} characters")
    return path


def _with_few_reserved(rounds: list[Names]) -> list[Names]:
    if sum(len(names) for round_ in rounds for path, names in round_ if path == (RESERVED,)) > _MOST_RESERVED:
        raise ValueError(f"an index with more than {_MOST_RESERVED} meta-packages")
    return rounds


# Values of records, as ``packages.nix`` bounds them. The paths of all attributes repeat that of their set, and pages
# and the API show all of these.
_Path = Annotated[AttributePath, AfterValidator(_bounded)]
_Name = Annotated[str, Field(max_length=256)]
_Text = Annotated[str, Field(max_length=4096)]


class Row(BaseModel):
    """What a search and the progress need to know about an attribute; outputs and name only while it is made."""

    path: _Path
    kind: str
    version: _Name = ""
    description: _Text = ""
    programs: tuple[_Name, ...] = ()
    reason: _Text = ""
    alias_of: _Path = ()
    recurse: bool = Field(default=False, exclude=True)
    identity: str = Field(default="", exclude=True)
    is_original: bool = Field(default=False, exclude=True)


class _Failure(BaseModel):
    """The line of an attribute whose evaluation failed."""

    error: _Text


class Header(BaseModel):
    """An index without its rows.

    Attributes:
        source: the source of its pin.
        revision: likewise.
        created: likewise.
        rounds: the sets whose attributes were listed at a time, with the names in them. Sets of one round were
            found in the one before.
        is_complete: whether every attribute has a row.
    """

    source: Annotated[str, Field(max_length=128 * 1024)]
    revision: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
    created: Annotated[int, Field(ge=EARLIEST, le=LATEST)] | None
    rounds: Annotated[
        CheckedList[CheckedList[tuple[_Path, CheckedList[_Name]]]], AfterValidator(_with_few_reserved)
    ]
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


class StateVersions:
    """The versions of all packages of a state, in a few bytes for each: a server keeps those of several states.

    Args:
        header: of the state's index.
        rows: have the versions.
        modified: when the index was stored.
    """

    def __init__(self, header: Header, rows: Iterable[Row], modified: float) -> None:
        self.source, self.revision, self.created = header.source, header.revision, header.created
        self.date = float(modified if header.created is None else header.created)
        numbers: dict[str, int] = {}
        left = _MOST_VERSIONS
        found = []
        for row in rows:
            if row.version and row.version not in numbers:
                left -= getsizeof(row.version)
                if left >= 0:
                    numbers[row.version] = len(numbers)
            if row.version in numbers:
                found.append((_short_hash(row.path), numbers[row.version]))
        found.sort()
        self._hashes = array("Q", (hash_ for hash_, _ in found))
        self._numbers = array("L", (number for _, number in found))
        self._versions = list(numbers)

    def of(self, path: AttributePath) -> str:
        """Return the version of a package; empty if it is unknown."""
        wanted = _short_hash(path)
        at = bisect_left(self._hashes, wanted)
        if at == len(self._hashes) or self._hashes[at] != wanted:
            return ""
        return self._versions[self._numbers[at]]


def _short_hash(path: AttributePath) -> int:
    return int.from_bytes(hashlib.blake2b(canonical_json(list(path)), digest_size=8).digest(), "big")


class StateIndex:
    """The index of one state of the source, as far as it is made.

    Requests need the names alone, so rows and the search are made when they are first used: call ``prepare`` in
    a thread before.

    Args:
        key: of its record.
        header: its names.
        rows: returns what is known about attributes.

    Attributes:
        stored: bytes of its parts that are stored, by key, as far as this object knows.
    """

    def __init__(self, key: str, header: Header, rows: Callable[[], Iterable[Row]] = tuple) -> None:
        self.key = key
        self.header = header
        self._read_rows = rows
        self.stored: dict[str, int] = {}
        self._progress: Progress | None = None
        self._text: int | None = None
        self._first_failed: Sequence[Row] = ()
        self._list()

    @classmethod
    def listed(cls, key: str, pin: Pin, names: Names) -> StateIndex:
        """Make the index of a state of which only names are known."""
        return cls(key, Header(source=pin.source, revision=pin.revision, created=pin.created, rounds=[names]))

    @cached_property
    def rows(self) -> dict[AttributePath, Row]:
        """What is known about attributes."""
        return {row.path: row for row in self._read_rows()}

    @cached_property
    def search(self) -> PackageSearch:
        """Searches the rows as they were at its first use."""
        return PackageSearch(self._found())

    @property
    def is_prepared(self) -> bool:
        """Whether rows and search are made."""
        return "search" in self.__dict__

    def copy(self) -> StateIndex:
        """Return an index that may change independently."""
        header = self.header.model_copy(update={"rounds": list(self.header.rounds)})
        rows = list(self.rows.values())
        made = StateIndex(self.key, header, lambda: rows)
        # Here, in a thread: until Python 3.12, all instances of `cached_property` share one lock, and another thread
        # may hold it for seconds.
        _ = made.rows
        return made

    def prepare(self) -> StateIndex:
        """Make the search and the progress, and release the rows; return this index.

        So many objects would make Python's garbage collector stop all threads for long.
        """
        if "search" not in self.__dict__:
            _ = self.search, self.progress
            self.__dict__.pop("rows", None)
        return self

    def settle(self) -> bytes:
        """Prepare an index that does not change any more, and return its record, from which it reads rows if needed.

        Raises:
            StorageError: no server would read it, since it is too large; then it has no rows.
        """
        try:
            content = self.encoded()
            rows = _split(content)[1]
            self._read_rows = lambda: decode(_decode_rows, rows) or ()
        except StorageError:
            # A server that needs the rows reads the parts: hundreds of thousands would fill the memory.
            self._read_rows = tuple
            raise
        finally:
            _ = self.progress
            self.__dict__.pop("rows", None)
        return content

    def add(self, names: Names) -> None:
        """Add a round of names. Counts all rows again, so call it in a thread."""
        self.header.rounds.append(names)
        self._list()
        _ = self.progress

    def add_rows(self, rows: Iterable[Row] = ()) -> None:
        """Add rows; above the limit, without what searches could do without.

        The first call counts all rows that the index has: half a second for many, so make it in a thread.
        """
        progress = self.progress
        if self._text is None:
            self._text = sum(map(_text_of, self.rows.values()))
        failed, added, is_repaired = progress.failed, dict[AttributePath, Row](), False
        for row in rows:
            before = self.rows.get(row.path)
            text = self._text + _text_of(row) - (_text_of(before) if before is not None else 0)
            if text > _MOST_TEXT:
                text -= _text_of(row)
                row = row.model_copy(  # noqa: PLW2901 -- the same row
                    update={"version": "", "description": "", "programs": (), "reason": row.reason[:80]}
                )
            self._text = text
            self.rows[row.path] = added[row.path] = row
            had_failed = before is not None and before.kind == _FAILED
            failed += (row.kind == _FAILED) - had_failed
            is_repaired |= had_failed and row.kind != _FAILED
        # A shown failure that is none any more makes room for one that only a look at all rows finds.
        self._progress = None
        if not is_repaired:
            self._count(
                [*(row for row in self._first_failed if row.path not in added), *added.values()], failed
            )

    def path(self, name: str) -> AttributePath | None:
        """Return the attribute that a component of an image name selects; ``None`` if it leads out of the index."""
        return self._names.resolve(name)

    @property
    def meta_packages(self) -> Sequence[tuple[str, AttributePath]]:
        """Names of meta-packages that clients can use, and their paths, sorted."""
        reserved = next((names for path, names in self.header.rounds[0] if path == (RESERVED,)), ())
        found = [
            ("shell", (RESERVED, name))
            if name == SHELL
            else (self._names.spell((RESERVED, name)), (RESERVED, name))
            for name in reserved
        ]
        return sorted((name, path) for name, path in found if name is not None)

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
        near = [name for path, names in self.header.rounds[0] if path in _SELECTED_BY_NAME for name in names]
        return NearNames("", near)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        known = self._progress
        return self._count(self.rows.values()) if known is None else known

    def _count(self, rows: Iterable[Row], failed: int | None = None) -> Progress:
        """Set the progress, and return it.

        Args:
            rows: all failures that it may show are among them.
            failed: number of all failures; ``None`` for those of the rows.
        """
        found = [row for row in rows if row.kind == _FAILED]
        self._first_failed = heapq.nsmallest(
            _SHOWN_FAILURES, found, key=lambda row: (len(row.path), row.path)
        )
        self._progress = Progress(
            revision=self.header.revision,
            attributes=len(self._number),
            evaluated=len(self.rows),
            failures=tuple((".".join(row.path), row.reason) for row in self._first_failed),
            failed=len(found) if failed is None else failed,
            is_complete=self.header.is_complete,
        )
        return self._progress

    def sets_to_enter(self) -> list[AttributePath]:
        """Return the sets of packages whose names are not listed, up to the limits."""
        known = {path for names in self.header.rounds for path, _ in names}
        found = [row.path for row in self.rows.values() if row.recurse and len(row.path) < _DEEPEST]
        return sorted(set(found) - known) if self.room else []

    @property
    def room(self) -> int:
        """The number of attributes that may still be added."""
        return max(0, MOST_ATTRIBUTES - len(self._number))

    def complete(self) -> None:
        """Mark aliases: of the attributes that are the same package, the one with the package's own name is no alias."""
        same: dict[str, list[Row]] = {}
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
        self._progress = None

    def encoded(self) -> bytes:
        """Encode the record.

        Raises:
            StorageError: no server would read it, since it is too large.
        """
        names = "\n".join(package.name for package in self.search).encode()
        if len(self._number) >= MOST_ATTRIBUTES:
            raise StorageError(
                f"cannot write the record of a package index: it has {len(self._number)} names, "
                f"and {MOST_ATTRIBUTES} is the limit"
            )
        listed = self.header.model_dump_json().encode()
        if listed.count(b",") > _MOST_COMMAS:
            raise StorageError(
                "cannot write the record of a package index: its names have too many commas, "
                f"{_MOST_COMMAS} is the limit"
            )
        header = _compressed(listed, _LARGEST_HEADER)
        lines = [row.model_dump_json(exclude_defaults=True).encode() for row in self.rows.values()]
        rows = _compressed(b"\n".join(lines), _LARGEST_ROWS)
        return b"".join((HEADER, names, b"\n\n", b"%016x" % len(header), header, rows))

    def _list(self) -> None:
        """Number all attributes, and cut each round into parts."""
        self._progress = None
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
                yield FoundPackage(name, _shown(path))
            else:
                alias_of = self._names.spell(row.alias_of) if row.alias_of else None
                yield FoundPackage(
                    name,
                    _shown(path),
                    row.version,
                    row.description,
                    row.programs,
                    row.reason,
                    alias_of or "",
                )


def _shown(path: AttributePath) -> str:
    return ".".join(path[1:] if path[:1] == (RESERVED,) else path)


def decode_index(content: bytes, key: str = "") -> StateIndex:
    """Decode the record of an index; torn rows are read again from the parts.

    Raises:
        ValueError: it is torn, or has another schema.
    """
    header, rows = _split(content)
    return StateIndex(key, header, lambda: decode(_decode_rows, rows) or ())


def decode_header(content: bytes) -> Header:
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


def _split(content: bytes) -> tuple[Header, bytes]:
    if not content.startswith(HEADER):
        raise ValueError("not the record of an index")
    # The header's own line break may be the first of an empty line, if there are no names.
    start = content.index(b"\n\n", len(HEADER)) + 2
    first = start + 16
    second = first + int(content[start:first], 16)
    text = decompressed(content[first:second], _LARGEST_HEADER)
    if text.count(b",") > _MOST_COMMAS:
        raise ValueError(f"the record of an index has more than {MOST_ATTRIBUTES} names")
    header = Header.model_validate_json(text)
    if not header.rounds:
        raise ValueError("the record of an index has no names")
    return header, content[second:]


def _decode_rows(content: bytes) -> list[Row]:
    # One at a time: the errors of all of them would fill the memory.
    lines = _lines(content, _LARGEST_ROWS, MOST_ATTRIBUTES)
    return [Row.model_validate_json(line) for line in lines if line]


def decode_part(content: bytes) -> list[bytes]:
    """Decode a part: a line for each attribute.

    Raises:
        ValueError: it is torn.
    """
    return _lines(content, _LARGEST_PART, PART)


def _lines(content: bytes, limit: int, most: int) -> list[bytes]:
    text = decompressed(content, limit)
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


def encode_line(reported: Reported) -> bytes:
    """Return the line of a part for an attribute."""
    if reported.entry is not None:
        return reported.entry
    # Nix sorts names of members, so its own lines begin with another one.
    return json.dumps({"error": reported.error, "path": reported.path}).encode()


def _attribute(path: AttributePath, line: bytes) -> Attribute:
    if line.startswith(b'{"error"'):
        failure = decode(_Failure.model_validate_json, line)
        return Attribute(path, _FAILED, reason=failure.error if failure and failure.error else _UNKNOWN)
    return parse_entry(path, line)


def attribute_of(content: bytes | None, path: AttributePath, number: int) -> Attribute | None:
    """Return an attribute of a part, by its line; ``None`` if the part is missing or torn."""
    lines = decode(decode_part, content)
    if lines is None or number >= len(lines):
        return None
    return decode(partial(_attribute, path), lines[number])


def _text_of(row: Row) -> int:
    return sum(len(text) + _OF_A_TEXT for text in (row.version, row.description, *row.programs) if text)


def rows_of(paths: Sequence[AttributePath], lines: Sequence[bytes]) -> list[Row]:
    """Return the rows of a part."""
    return [_row(_attribute(path, line)) for path, line in zip(paths, lines, strict=True)]


def _row(attribute: Attribute) -> Row:
    programs = dict.fromkeys((attribute.main_program, *attribute.programs))
    return Row(
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


def decode_versions(content: bytes, modified: float) -> StateVersions:
    """Decode the versions in the record of an index.

    Raises:
        ValueError: it is torn, or has another schema.
    """
    header, rows = _split(content)
    return StateVersions(header, _decode_rows(rows), modified)
