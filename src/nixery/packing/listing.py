"""What is in a store path: names, types, sizes and targets, and the few contents that root file systems need.

A listing stands for a store path that is not on this machine. It is compact: as text, one entry of a directory takes
its name and some ten bytes, and only the directories that are read become objects.

The listings that some binary caches have themselves (``<hash>.ls``) are not used: nothing signs them, and they decide
where an image's names lead. A listing here is made from a NAR whose hash was checked.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import ItemsView, Iterator, Sequence
from operator import ge
from typing import NamedTuple, Self

import zstandard

from nixery.files import LONGEST_NAME, LONGEST_PATH
from nixery.packing.contents import DIRECTORY_MODE, EXECUTABLE_MODE, PLAIN_MODE, Name

# Limits of a listing: its names, the bytes of its text, and those of the contents that it keeps. The largest of
# Debian's packages, with 120,000 names, has 6 MB of text.
MOST_NAMES = 1 << 20
MOST_BYTES = 1 << 26
MOST_KEPT = 1 << 20

# Bytes that a kept content counts for beside its own and those of its name.
KEPT_COST = 128

_FORMAT = b"nixery listing 1\n"

# After the format: directories, files whose contents are kept, bytes of the root's entry.
_HEADER = struct.Struct("<III")

# An entry's text: name, slash, type and what belongs to it, zero. No name contains a slash, and neither names nor
# targets contain a zero. The types: a plain file and an executable one with their sizes, a symlink with its target,
# a directory with its number.
PLAIN, EXECUTABLE, SYMLINK, DIRECTORY = b"r", b"x", b"l", b"d"
_NODE = rb"(?:[rx](?:0|[1-9][0-9]{0,17})|l[^\0]{1,%d}|d(0|[1-9][0-9]{0,6}))" % LONGEST_PATH
_ROOT = re.compile(_NODE)
_ENTRY = re.compile(rb"(?<![^\0])([^/\0]{1,%d})/" % LONGEST_NAME + _NODE + rb"\0")

_RELATIVE = frozenset({b".", b".."})

# Bytes of text up to which a directory is looked up through a dictionary.
_SMALL = 1 << 12

# Bytes of memory for a directory beside its text, and for each byte of a small directory's text once it is a
# dictionary; and bytes of text of the directories that a listing keeps parsed.
_DIRECTORY_COST = 48
_PARSED_COST = 8
_MOST_PARSED = 1 << 17


class Node(NamedTuple):
    """A file of a listing.

    Attributes:
        mode: its type and permissions (``st_mode``).
        size: of a regular file, in bytes; else 0.
        target: of a symlink; else empty.
        directory: the number of a directory; else ``None``.
    """

    mode: int
    size: int = 0
    target: bytes = b""
    directory: int | None = None

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read a node as the text of a listing has it, which must be valid."""
        kind, rest = text[:1], text[1:]
        if kind == SYMLINK:
            return cls(stat.S_IFLNK | 0o777, target=rest)
        if kind == DIRECTORY:
            return cls(stat.S_IFDIR | DIRECTORY_MODE, directory=int(rest))
        return cls(stat.S_IFREG | (PLAIN_MODE if kind == PLAIN else EXECUTABLE_MODE), size=int(rest))


class Directory:
    """A directory of a listing.

    Args:
        text: as a listing has it, valid.
    """

    __slots__ = ("_nodes", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        # A dictionary takes several times the text: a directory of a million names does without.
        self._nodes: dict[bytes, bytes] | None = None
        if len(text) <= _SMALL:
            # A node may have slashes in the target of a symlink.
            self._nodes = dict(entry.split(b"/", 1) for entry in text.split(b"\0")[:-1])

    def find(self, name: bytes) -> Node | None:
        """Return the file with a name; ``None`` if there is none."""
        node = self._nodes.get(name) if self._nodes is not None else self._search(name)
        return None if node is None else Node.parse(node)

    def names(self) -> Iterator[Name]:
        """List it, in the order of bytes."""
        for name, node in self._items() if self._nodes is None else self._nodes.items():
            yield Name(name, node.startswith(DIRECTORY))

    def _search(self, name: bytes) -> bytes | None:
        text = self._text
        low, high = 0, len(text)
        while low < high:
            # The entry that the byte in the middle belongs to.
            start = text.rfind(b"\0", low, (low + high) // 2) + 1 or low
            slash = text.index(b"/", start)
            found, end = text[start:slash], text.index(b"\0", slash)
            if found == name:
                return text[slash + 1 : end]
            if found < name:
                low = end + 1
            else:
                high = start
        return None

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        start, text = 0, self._text
        while start < len(text):
            slash = text.index(b"/", start)
            end = text.index(b"\0", slash)
            yield text[start:slash], text[slash + 1 : end]
            start = end + 1


class Kept:
    """Contents of files, or their beginnings, up to a limit for all of them together.

    Args:
        room: bytes; a name counts, too.
    """

    __slots__ = ("_all", "_contents", "_room")

    def __init__(self, room: int = MOST_KEPT) -> None:
        self._all = self._room = room
        self._contents: dict[bytes, bytes] = {}

    @property
    def size(self) -> int:
        """Bytes that they count for."""
        return self._all - self._room

    def get(self, name: bytes) -> bytes | None:
        """Return what is kept of a file; ``None`` if nothing is."""
        return self._contents.get(name)

    def add(self, name: bytes, content: bytes, reserve: int = 0) -> None:
        """Keep a content, in place of another one of the file, if there is room for it and some more."""
        room = self._room - len(name) - len(content) - KEPT_COST
        if room >= reserve:
            self._room = room
            self._contents[name] = content

    def items(self) -> ItemsView[bytes, bytes]:
        """The contents by name."""
        return self._contents.items()


class Listing:
    """The listing of a store path. Names are relative to it; the empty name is the store path itself.

    Args:
        root: the node of the store path, as in the text of an entry.
        directories: the text of each directory by its number. A directory has a larger number than those in it.
        kept: contents by name.

    Attributes:
        root: the store path itself.
        kept: as above.
        text_size: bytes of memory for names and targets, without those of parsed directories.
    """

    __slots__ = ("_directories", "_parsed", "_parsed_size", "_root", "kept", "root", "text_size")

    def __init__(self, root: bytes, directories: Sequence[bytes], kept: Kept) -> None:
        self._root = root
        self.root = Node.parse(root)
        self._directories = directories
        self._parsed: dict[int, Directory] = {}
        self._parsed_size = 0
        self.kept = kept
        self.text_size = len(root) + sum(len(text) + _DIRECTORY_COST for text in directories)

    @property
    def size(self) -> int:
        """Bytes of memory: for text, for contents, and for the directories that look-ups may parse."""
        return self.text_size + self.kept.size + _PARSED_COST * min(self.text_size, _MOST_PARSED)

    def directory(self, name: bytes) -> Directory:
        """Return a directory.

        Raises:
            OSError: there is none with the name: ``ENOENT``, ``ENOTDIR`` or ``ELOOP``.
        """
        node: Node | None = self.root
        for component in name.split(b"/") if name else ():
            node = self._of(node).find(component)
        return self._of(node)

    def agrees_with(self, other: Listing) -> bool:
        """Whether names, types, sizes and targets are those of another listing, and contents that both keep."""
        if self._root != other._root or list(self._directories) != list(other._directories):
            return False
        kept = list(self.kept.items())  # another thread may keep a content meanwhile
        return all(other.kept.get(name) in {None, content} for name, content in kept)

    def _of(self, node: Node | None) -> Directory:
        if node is None or node.directory is None:
            kind = errno.ENOENT if node is None else errno.ELOOP if stat.S_ISLNK(node.mode) else errno.ENOTDIR
            raise OSError(kind, os.strerror(kind))
        directory = self._parsed.get(node.directory)
        if directory is None:
            text = self._directories[node.directory]
            self._parsed_size += min(len(text), _SMALL)
            if self._parsed_size > _MOST_PARSED:
                self._parsed, self._parsed_size = {}, 0
            directory = self._parsed[node.directory] = Directory(text)
        return directory

    def encode(self) -> bytes:
        """Return the listing as a record."""
        # Another thread may keep a content meanwhile.
        kept = list(self.kept.items())
        parts = [*self._directories, *(part for item in kept for part in item)]
        header = _HEADER.pack(len(self._directories), len(kept), len(self._root))
        sizes = struct.pack(f"<{len(parts)}I", *map(len, parts))
        record = b"".join((_FORMAT, header, sizes, self._root, *parts))
        return zstandard.ZstdCompressor(write_checksum=True).compress(record)

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Read a record, which may be torn or forged.

        Raises:
            ValueError: it is not a listing, or exceeds the limits.
        """
        text = _decompressed(record)
        if not text.startswith(_FORMAT):
            raise ValueError("not a listing of this version")
        try:
            directories, kept, root_size = _HEADER.unpack_from(text, len(_FORMAT))
            start = len(_FORMAT) + _HEADER.size
            count = directories + 2 * kept
            if 4 * count > len(text):
                raise ValueError("a listing is torn")
            sizes = (root_size, *struct.unpack_from(f"<{count}I", text, start))
        except struct.error as error:
            raise ValueError("a listing is torn") from error
        start += 4 * count
        parts = []
        for size in sizes:
            parts.append(text[start : start + size])
            start += size
        if start != len(text):
            raise ValueError("a listing is torn")
        root, *rest = parts
        _require_valid(root, rest[:directories])
        contents = Kept()
        for name, content in zip(rest[directories::2], rest[directories + 1 :: 2], strict=True):
            contents.add(name, content)
        return cls(root, rest[:directories], contents)


def _decompressed(record: bytes) -> bytes:
    try:
        # A frame may claim any size, for which memory would be reserved.
        size = zstandard.frame_content_size(record)
        if not 0 <= size <= MOST_BYTES + MOST_KEPT + 8 * MOST_NAMES:
            raise ValueError("a listing exceeds its limits")
        text = zstandard.ZstdDecompressor().decompress(record, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError("a listing is torn") from error
    return text


def _require_valid(root: bytes, directories: Sequence[bytes]) -> None:
    match = _ROOT.fullmatch(root)
    # The store path itself comes last.
    if match is None or (int(match[1]) if match[1] else -1) != len(directories) - 1:
        raise ValueError("a listing's root is not valid")
    if sum(map(len, directories)) > MOST_BYTES:
        raise ValueError("a listing exceeds its limits")
    count = 0
    for number, text in enumerate(directories):
        entries = _ENTRY.findall(text)
        names = [name for name, _ in entries]
        count += len(names)
        # The expression skips what it does not match, but never a zero.
        is_whole = len(names) == text.count(b"\0") and text[-1:] in {b"", b"\0"}
        if not is_whole or count > MOST_NAMES or not _RELATIVE.isdisjoint(names):
            raise ValueError("a listing has an entry that is not valid")
        if any(map(ge, names, names[1:])):
            raise ValueError("a listing's names are not sorted")
        # Smaller numbers only, so that no directory contains itself.
        if any(int(child) >= number for _, child in entries if child):
            raise ValueError("a listing's directories are not in order")
