"""Read NARs, the archives in which binary caches keep store paths, as streams.

Format: Nix manual, "Nix Archive (NAR) format": strings, each with its length in 8 bytes, little endian, and zeros up to
a multiple of 8 bytes. A NAR of Nix has one form for each tree: names in a directory are sorted by bytes, and no field
is optional. Every other form is refused, as is a NAR whose size or hash differs from what is registered. Whatever is
read before the end is not verified yet: a caller keeps nothing of it if this code raises an error.

Nothing here recurses, and the memory does not grow with the contents: only the listing does, up to a limit.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError  # noqa: N812 -- an exception
from typing import NoReturn

from nixery.closure import PathInfo
from nixery.errors import NarRefused, UnsafeContents, shown
from nixery.files import LONGEST_NAME, LONGEST_PATH
from nixery.packing.archive import Archive
from nixery.packing.contents import DIRECTORY_MODE, EXECUTABLE_MODE, PLAIN_MODE, STORE
from nixery.packing.listing import (
    KEPT_COST,
    MOST_BYTES,
    MOST_KEPT,
    MOST_NAMES,
    Kept,
    Listing,
)
from nixery.packing.root_contents import STORE_ITSELF, Rule, kept_in

# A part of a NAR. It need be valid only until the next one is asked for.
Piece = bytes | memoryview

_LENGTH = Struct("<Q")
_WORD = _LENGTH.size

# Bytes that count for an entry beside its name and its target: a listing in progress takes more than its text.
_ENTRY_COST = MOST_BYTES // MOST_NAMES

_RELATIVE = frozenset({b".", b".."})
_LONGEST_RELATIVE = 2
# Searching for a byte takes a fraction of the time of searching for a string.
_SLASH = ord("/")


def _string(text: bytes) -> bytes:
    return _LENGTH.pack(len(text)) + text + bytes(-len(text) % _WORD)


def _strings(*texts: bytes) -> bytes:
    return b"".join(map(_string, texts))


# The parts between names, targets and contents. A name or a content is followed by its padding, so each part that comes
# after one is there with every number of zeros before it, by the length's rest. One comparison checks all of it.
def _after_padding(part: bytes) -> tuple[bytes, ...]:
    return tuple(bytes(-length % _WORD) + part for length in range(_WORD))


_MAGIC = _strings(b"nix-archive-1", b"(", b"type")
_ENTRY = _strings(b"entry", b"(", b"name")
_NODE = _strings(b"node", b"(", b"type")
_PLAIN = _after_padding(_NODE + _strings(b"regular", b"contents"))
_EXECUTABLE = _after_padding(_NODE + _strings(b"regular", b"executable", b"", b"contents"))
_SYMLINK = _after_padding(_NODE + _strings(b"symlink", b"target"))
_DIRECTORY = _after_padding(_NODE + _strings(b"directory"))
_END = _strings(b")")
_END_OF_NODE = _strings(b")", b")")
_END_OF_CONTENT = _after_padding(_END_OF_NODE)

# The most bytes of an entry without contents: a symlink's.
_LONGEST_ENTRY = (
    len(_ENTRY) + len(_EXECUTABLE[1]) + LONGEST_NAME + LONGEST_PATH + 2 * _WORD + len(_END_OF_CONTENT[1])
)


def add_nar(archive: Archive, info: PathInfo, pieces: Iterable[Piece]) -> Listing:
    """Append a store path to an archive, from its NAR.

    Args:
        archive: incomplete and of no use after an error.
        info: of the store path; the NAR has its size and its hash.
        pieces: of the NAR.

    Raises:
        NarRefused: the NAR is not valid, or not the registered one.
        UnsafeContents: a name is not allowed in an image, or there are too many.
    """
    return _Reader(info, pieces, archive).read()


def list_nar(info: PathInfo, pieces: Iterable[Piece]) -> Listing:
    """List a store path, from its NAR.

    Raises:
        NarRefused: see ``add_nar``.
        UnsafeContents: likewise.
    """
    return _Reader(info, pieces, None).read()


def read_nar(info: PathInfo, pieces: Iterable[Piece], name: bytes, size: int) -> bytes:
    """Read the beginning of a regular file of a store path, from its NAR, which is read to its end.

    Args:
        info: of the store path.
        pieces: of the NAR.
        name: of the file below the store path; empty if the store path is a file itself.
        size: in bytes.

    Raises:
        NarRefused: see ``add_nar``, or the file is not in the NAR.
        UnsafeContents: see ``add_nar``.
    """
    above, slash, last = name.rpartition(b"/")
    directory = above + slash if name else STORE_ITSELF

    def keep(found: bytes, of: int, _: bool) -> int:  # noqa: FBT001
        return min(of, size) if found == last or not name else 0

    reader = _Reader(
        info,
        pieces,
        None,
        lambda inside: Rule(keep) if inside == directory else None,
        size + len(name) + KEPT_COST,
    )
    reader.read()
    content = reader.kept.get(name)
    if content is None:
        raise NarRefused(str(info.path), f"it has no file {shown(name)}, which its listing has")
    return content


@dataclass(slots=True)
class _Level:
    """A directory in progress.

    Attributes:
        above: its name in the image, with a slash.
        inside: its name below the store path, with a slash unless it is empty.
        entries: names and their nodes, as in the text of a listing.
        last: the name before.
        keep: which contents of this directory to keep; ``None`` for none.
    """

    above: bytes
    inside: bytes
    keep: Rule | None
    entries: list[bytes] = field(default_factory=list)
    last: bytes = b""


class _Reader:
    """Reads one NAR: as the only entry of the store directory, which ``_framed`` puts around it."""

    def __init__(
        self,
        info: PathInfo,
        pieces: Iterable[Piece],
        archive: Archive | None,
        kept_in: Callable[[bytes], Rule | None] = kept_in,
        room_for_kept: int = MOST_KEPT,
    ) -> None:
        self._info = info
        self._archive = archive
        self._kept_in = kept_in
        self._pieces = self._framed(iter(pieces))
        self._ended = False
        # What was received and is not read yet: from this position.
        self._data, self._at = b"", 0
        self._directories: list[bytes] = []
        self.kept = Kept(room_for_kept)
        self._room = MOST_BYTES

    def read(self) -> Listing:
        """Read all of it."""
        store = _Level(STORE.strip(b"/") + b"/", STORE_ITSELF, self._kept_in(STORE_ITSELF))
        levels = [store]
        try:
            while levels:
                self._read_entries(levels)
        except StructError:
            self._refuse("it is cut within a length")
        if self._fill(1) or len(store.entries) != 1:
            self._refuse("it goes on after its end")
        _, _, node = store.entries[0].partition(b"/")
        return Listing(node[:-1], self._directories, self.kept)

    def _framed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield the pieces, without the beginning that a NAR alone has, and check size and hash at their end."""
        registered, received = self._info.nar_size, 0
        digest, beginning = hashlib.sha256(), b""
        framed = False
        for piece in pieces:
            received += len(piece)
            if received > registered:
                self._refuse(f"it has more than the {registered:,} bytes that are registered")
            digest.update(piece)
            if framed:
                yield piece
                continue
            beginning += piece
            if len(beginning) >= len(_MAGIC):
                if not beginning.startswith(_MAGIC):
                    self._refuse("it does not begin as a NAR")
                framed = True
                base_name = self._info.path.base_name.encode()
                yield b"".join((_ENTRY, _string(base_name), _NODE, beginning[len(_MAGIC) :]))
        if received < registered:
            self._refuse(f"it ends after {received:,} of {registered:,} bytes")
        if digest.hexdigest() != self._info.nar_hash:
            self._refuse("its hash is not the registered one")
        yield _END + _END_OF_NODE

    def _read_entries(self, levels: list[_Level]) -> None:  # noqa: C901, PLR0912, PLR0915 -- a call costs as much as an entry
        """Read entries of the innermost directory, until it ends or another one begins in it."""
        level = levels[-1]
        archive, above, inside, keep = self._archive, level.above, level.inside, level.keep
        entries, last, room = level.entries, level.last, self._room
        length_at = _LENGTH.unpack_from
        data, at = self._data, self._at
        starts, view, safe = data.startswith, memoryview(data), len(data) - _LONGEST_ENTRY
        while True:
            if at > safe and not self._ended:
                self._at = at
                self._fill(_LONGEST_ENTRY)
                data, at = self._data, self._at
                starts, view, safe = data.startswith, memoryview(data), len(data) - _LONGEST_ENTRY
            if not starts(_ENTRY, at):
                if not starts(_END_OF_NODE, at):
                    self._refuse("a directory has neither an entry nor an end where one is due")
                self._at, self._room = at + len(_END_OF_NODE), room
                self._leave(levels)
                return
            at += len(_ENTRY)
            (length,) = length_at(data, at)
            at += _WORD
            name = data[at : at + length]
            # The first name of a directory comes after the empty one.
            if name <= last:
                self._refuse("the names of a directory are not sorted, or not unique")
            if (
                length > LONGEST_NAME
                or _SLASH in name
                or 0 in name
                or (length <= _LONGEST_RELATIVE and name in _RELATIVE)
            ):
                self._refuse("a name is not one of a file")
            last = name
            at += length
            padding = length % _WORD
            room -= length + _ENTRY_COST
            if starts(_PLAIN[padding], at):
                text, mode = b"%b/r%d\0", PLAIN_MODE
                at += len(_PLAIN[padding])
            elif starts(_SYMLINK[padding], at):
                at += len(_SYMLINK[padding])
                (length,) = length_at(data, at)
                at += _WORD
                target = data[at : at + length]
                if not 0 < length <= LONGEST_PATH or 0 in target:
                    self._refuse("the target of a symlink is not one")
                at += length
                end = _END_OF_CONTENT[length % _WORD]
                if not starts(end, at):
                    self._refuse("a symlink does not end where it should")
                at += len(end)
                room -= length
                if room < 0:
                    raise _too_many(above + name)
                if archive is not None:
                    archive.symlink(above + name, target)
                entries.append(b"%b/l%b\0" % (name, target))
                continue
            elif starts(_EXECUTABLE[padding], at):
                text, mode = b"%b/x%d\0", EXECUTABLE_MODE
                at += len(_EXECUTABLE[padding])
            elif starts(_DIRECTORY[padding], at):
                self._at, self._room, level.last = at + len(_DIRECTORY[padding]), room, last
                self._enter(levels, name)
                return
            else:
                self._refuse(
                    "a file is neither regular nor a directory nor a symlink, or has other fields than Nix writes"
                )
            if room < 0:
                raise _too_many(above + name)
            (size,) = length_at(data, at)
            at += _WORD
            wanted = 0 if keep is None else min(size, keep.wanted(name, size, mode == EXECUTABLE_MODE))
            end = _END_OF_CONTENT[size % _WORD]
            if starts(end, at + size):
                content = view[at : at + size]
                if archive is not None:
                    archive.file(above + name, mode, content)
                beginning = bytes(content[:wanted]) if wanted else b""
                at += size + len(end)
            else:
                self._at = at
                beginning = self._read_large(above + name, mode, size, wanted)
                data, at = self._data, self._at
                starts, view, safe = data.startswith, memoryview(data), len(data) - _LONGEST_ENTRY
            if keep is not None and wanted:
                self.kept.add(b"" if inside == STORE_ITSELF else inside + name, beginning, keep.reserve)
            entries.append(text % (name, size))

    def _enter(self, levels: list[_Level], name: bytes) -> None:
        level = levels[-1]
        place = level.above + name
        if len(place) > LONGEST_PATH:
            raise UnsafeContents(b"/" + place, f"its name has more than {LONGEST_PATH:,} bytes")
        if self._room < 0:
            raise _too_many(place)
        if self._archive is not None:
            self._archive.directory(place, DIRECTORY_MODE)
        # The store path itself is not part of the names below it.
        inside = level.inside + name + b"/" if len(levels) > 1 else b""
        levels.append(_Level(place + b"/", inside, self._kept_in(inside)))

    def _leave(self, levels: list[_Level]) -> None:
        level = levels.pop()
        if levels:
            levels[-1].entries.append(b"%b/d%d\0" % (levels[-1].last, len(self._directories)))
            self._directories.append(b"".join(level.entries))

    def _read_large(self, place: bytes, mode: int, size: int, wanted: int) -> bytes:
        """Read a file whose end was not received yet; return so many bytes of its beginning."""
        if size > self._info.nar_size:
            self._refuse("a file is larger than the registered size of all")
        beginning = bytearray()
        content = self._content(size, beginning, wanted)
        if self._archive is not None:
            self._archive.file_of(place, mode, size, content)
        else:
            deque(content, 0)
        end = _END_OF_CONTENT[size % _WORD]
        self._fill(len(end))
        if not self._data.startswith(end, self._at):
            self._refuse("a file does not end where it should")
        self._at += len(end)
        return bytes(beginning)

    def _content(self, size: int, beginning: bytearray, wanted: int) -> Iterator[memoryview]:
        left = size
        piece = memoryview(self._data)[self._at :]
        while True:
            part = piece[:left]
            # Copied now: the piece may change once it is passed on.
            self._data, self._at = bytes(piece[left:]), 0
            left -= len(part)
            if len(beginning) < wanted:
                beginning += part[: wanted - len(beginning)]
            yield part
            if not left:
                return
            following = next(self._pieces, None)
            if following is None:
                self._refuse("it ends within a file")
            piece = memoryview(following)

    def _fill(self, least: int) -> bool:
        """Receive until so many bytes are not read yet; return whether there are as many."""
        parts: list[Piece] = [memoryview(self._data)[self._at :]]
        size = len(parts[0])
        while size < least and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            size += len(piece)
            # The piece may change once the next one is asked for.
            parts.append(piece if size >= least else bytes(piece))
        self._data, self._at = b"".join(parts), 0
        return size >= least

    def _refuse(self, reason: str) -> NoReturn:
        raise NarRefused(str(self._info.path), reason)


def _too_many(name: bytes) -> UnsafeContents:
    return UnsafeContents(
        b"/" + name, f"its store path has more than {MOST_NAMES:,} names, or very long ones"
    )
