"""A store path of a layer as a NAR, Nix's archive format (Nix manual, "Nix Archive"), in bounded memory.

A layer has the files of a store path in the order of a NAR: depth first, names sorted by bytes. The mode of a file
tells whether it is executable, and a NAR knows nothing else. So a tar becomes a NAR while it is read. A small path
is read from the Nix store instead, which is cheaper than to decompress all that precedes it in its layer; it takes
the same way, as a tar of one path.

The layer may be another one than the record says, and a builder may have changed a path of the store. So the last
piece of a NAR leaves only after its size and its SHA-256 were found to be those that Nix has registered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from struct import Struct
from typing import Protocol, cast

import zstandard
from isal import isal_zlib

from nixery.closure import PathInfo
from nixery.errors import StorageError
from nixery.files import LONGEST_PATH
from nixery.packing import tar
from nixery.packing.archive import Archive
from nixery.packing.contents import STORE
from nixery.packing.local_store import LocalStore

# Bytes of a NAR in a piece, and of a tar that are read in one step without any piece. A step takes some hundredths of
# a second.
PIECE, _STEP = 1 << 20, 8 << 20

# Bytes of compressed input that a decompressor gets at once, and of its output. Output of libzstd cannot be limited:
# this much input becomes 8 MiB at most (RFC 8878: a block of 128 KiB takes four bytes).
_GZIP_OUTPUT, _ZSTD_INPUT = 1 << 20, 1 << 8

# Bytes of a decompressor's window. Level 19, the highest of the settings, has 8 MiB.
_LARGEST_WINDOW = 8 << 20

# gzip framing, as in `compression`.
_GZIP = 16 + 15
# The annotation of isal's error is wrong.
_CORRUPT = (cast("type[Exception]", isal_zlib.IsalError), zstandard.ZstdError)

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAGIC_SIZE = 4

# Bytes of a pax header: a path and the target of a symlink, with their keys.
_LARGEST_PAX = 4 * (LONGEST_PATH + 1)

# Digits of a number: of all bytes that a file can have.
_MOST_DIGITS = 20

# Offsets of a header's fields (POSIX, "ustar Interchange Format"): name, mode, size, kind, target, prefix.
_FIELDS = Struct("100s 8s 16x 12s 20x 1s 100s 88x 155s 12x").unpack_from

_PREFIX = STORE.lstrip(b"/") + b"/"

_LENGTH = Struct("<Q").pack


def _text(content: bytes) -> bytes:
    return _LENGTH(len(content)) + content + bytes(-len(content) % 8)


def _texts(*contents: bytes) -> bytes:
    return b"".join(map(_text, contents))


_MAGIC = _texts(b"nix-archive-1")
_FILE = _texts(b"(", b"type", b"regular", b"contents")
_EXECUTABLE_FILE = _texts(b"(", b"type", b"regular", b"executable", b"", b"contents")
_SYMLINK = _texts(b"(", b"type", b"symlink", b"target")
_DIRECTORY = _texts(b"(", b"type", b"directory")
_ENTRY, _NODE = _texts(b"entry", b"(", b"name"), _texts(b"node")
_END = _texts(b")")

_PAX = b"x"


class _Decompressor(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Decompress more input, in pieces of bounded size."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = isal_zlib.decompressobj(_GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while not self._stream.eof:
            piece = self._stream.decompress(data, _GZIP_OUTPUT)
            data = self._stream.unconsumed_tail
            if piece:
                yield piece
            elif not data:
                return


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT):
            if self._stream.eof:
                return
            piece = self._stream.decompress(data[start : start + _ZSTD_INPUT])
            if piece:
                yield piece


class NarWriter:
    """Writes the NAR of one store path, from a tar that has it among others.

    Args:
        info: what Nix has registered of the path.
        place: where the tar is from, for errors.

    Attributes:
        is_complete: whether all of the path was read, so that the rest of the tar is not needed.
    """

    def __init__(self, info: PathInfo, place: str) -> None:
        self._info = info
        self._place = place
        self._base_name = _PREFIX + info.path.base_name.encode()
        self._decompressor: _Decompressor | None = None
        self._start = b""
        self._hash = hashlib.sha256()
        self._size = 0
        # Of the tar: bytes that are passed over, bytes of a file that are copied, and the beginning of a header.
        self._passed_over = self._copied = 0
        self._held = b""
        self._wanted = tar.BLOCK
        self._in_pax = False
        self._pax: dict[bytes, bytes] = {}
        # Of the NAR: what follows the file that is copied, the directories that are open, and bytes that did not leave.
        self._after_file = b""
        self._open: list[bytes] = []
        self._is_begun = False
        self._ready = bytearray()
        self.is_complete = False

    def add_compressed(self, data: bytes) -> Iterator[bytes]:
        """Read more of a compressed layer.

        Yields:
            Pieces of the NAR, none of which is its end. An empty one is a pause: no work takes long between two.

        Raises:
            StorageError: this is not a layer as this server packs them, or exceeds the path's registered size.
        """
        if self._decompressor is None:
            self._start += data
            if len(self._start) < _MAGIC_SIZE:
                return
            data, self._start = self._start, b""
            if data.startswith(_GZIP_MAGIC):
                self._decompressor = _Gzip()
            elif data.startswith(_ZSTD_MAGIC):
                self._decompressor = _Zstd()
            else:
                raise self._wrong("it is neither gzip nor zstd")
        since = 0
        try:
            for piece in self._decompressor.pieces(data):
                self.add(piece)
                since += len(piece)
                if self.is_complete:
                    return
                # The last piece is held back, since it may be the end.
                while len(self._ready) > PIECE:
                    yield self._take(PIECE)
                    since = 0
                if since >= _STEP:
                    yield b""
                    since = 0
        except _CORRUPT:
            raise self._wrong("it cannot be decompressed") from None

    def add(self, data: bytes | memoryview) -> None:
        """Read more of a tar.

        Raises:
            StorageError: as ``add_compressed``.
        """
        at, view = 0, memoryview(data)
        while at < len(view) and not self.is_complete:
            if self._copied:
                step = min(self._copied, len(view) - at)
                self._write(view[at : at + step])
                self._copied -= step
                if not self._copied:
                    self._write(self._after_file)
            elif self._passed_over:
                step = min(self._passed_over, len(view) - at)
                self._passed_over -= step
            else:
                step = min(self._wanted - len(self._held), len(view) - at)
                self._held += view[at : at + step]
                if len(self._held) == self._wanted:
                    held, self._held, self._wanted = self._held, b"", tar.BLOCK
                    self._begin(held)
            at += step

    def end(self) -> bytes:
        """Return the rest of the NAR, after its size and its hash were compared with the registered ones.

        Raises:
            StorageError: they differ, or the path is missing.
        """
        self._complete()
        rest = self._take(len(self._ready))
        if self._size != self._info.nar_size or self._hash.hexdigest() != self._info.nar_hash:
            raise self._wrong("its contents are not those that Nix has registered")
        return rest

    def _begin(self, block: bytes) -> None:
        """Begin an entry of the tar, or read the pax header before it."""
        if self._in_pax:
            self._in_pax = False
            self._pax = self._pax_records(block)
            return
        short_name, mode, size_field, kind, target, prefix = _FIELDS(block)
        size = self._number(size_field.rstrip(b"\0 "), 8)
        if kind == _PAX:
            if not 0 < size <= _LARGEST_PAX:
                raise self._wrong("it has a header that is too large")
            self._in_pax, self._wanted = True, size + -size % tar.BLOCK
            return
        pax, self._pax = self._pax, {}
        name = pax.get(b"path") or _joined(prefix, short_name)
        if b"size" in pax:
            size = self._number(pax[b"size"], 10)
        name = name.rstrip(b"/")
        if not self._is_ours(name):
            if self._is_begun or not name:  # a header without a name is the end of the archive
                self._complete()
            self._passed_over = size + -size % tar.BLOCK
            return
        if kind == tar.FILE:
            is_executable = bool(self._number(mode.rstrip(b"\0 "), 8) & 0o100)
            self._begin_file(name, size, is_executable=is_executable)
        elif kind == tar.SYMLINK:
            after = self._enter(name)
            self._write(_SYMLINK + _text(pax.get(b"linkpath") or target.rstrip(b"\0")) + after)
        elif kind == tar.DIRECTORY:
            self._enter(name)
            self._write(_DIRECTORY)
            self._open.append(name)
        else:
            raise self._wrong("it has an entry that is neither file, directory nor symlink")

    def _begin_file(self, name: bytes, size: int, *, is_executable: bool) -> None:
        after = self._enter(name)
        self._write((_EXECUTABLE_FILE if is_executable else _FILE) + _LENGTH(size))
        self._copied, self._passed_over = size, -size % tar.BLOCK
        self._after_file = bytes(-size % 8) + after
        if not size:
            self._write(after)

    def _is_ours(self, name: bytes) -> bool:
        return name.startswith(self._base_name) and name[len(self._base_name) :][:1] in {b"", b"/"}

    def _enter(self, name: bytes) -> bytes:
        """Begin the node of a name in the directory that has it; return what ends a node without entries."""
        if not self._is_begun:
            self._is_begun = True
            self._write(_MAGIC)
            if name != self._base_name:
                raise self._wrong("it has a file without its directory")
            return _END
        above, _, name = name.rpartition(b"/")
        while self._open and self._open[-1] != above:
            self._leave()
        if not self._open:
            raise self._wrong("its names are not in order")
        self._write(_ENTRY + _text(name) + _NODE)
        return _END + _END

    def _leave(self) -> None:
        self._open.pop()
        # The root is a node without an entry.
        self._write(_END + _END if self._open else _END)

    def _complete(self) -> None:
        while self._open:
            self._leave()
        self.is_complete = True

    def _write(self, data: bytes | memoryview) -> None:
        self._ready += data
        if self._size + len(self._ready) > self._info.nar_size:
            raise self._wrong(f"it has more than the {self._info.nar_size:,} bytes that Nix has registered")

    def _take(self, size: int) -> bytes:
        piece = bytes(memoryview(self._ready)[:size])
        del self._ready[:size]
        self._hash.update(piece)
        self._size += size
        return piece

    def _pax_records(self, block: bytes) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        while block[:1].strip(b"\0"):
            length, _, _ = block.partition(b" ")
            size = self._number(length, 10)
            key, _, value = block[len(length) + 1 : size].partition(b"=")
            if not size or not value.endswith(b"\n"):
                raise self._wrong("it has a header that cannot be read")
            records[key] = value[:-1]
            block = block[size:]
        return records

    def _number(self, digits: bytes, base: int) -> int:
        # Not `int` alone: it also takes signs, spaces and underscores.
        if not digits.isdigit() or len(digits) > _MOST_DIGITS:
            if not digits:
                return 0
            raise self._wrong("it has a header that cannot be read")
        try:
            return int(digits, base)
        except ValueError:
            raise self._wrong("it has a header that cannot be read") from None

    def _wrong(self, why: str) -> StorageError:
        return StorageError(
            f"cannot make the NAR of {self._info.path} from {self._place}: {why} (have the image built again)"
        )


def stored_nar(info: PathInfo) -> bytes:
    """Return the NAR of a store path that this machine has.

    Args:
        info: what Nix has registered of it; all of it is in memory.

    Raises:
        StorageError: it is not there, or its contents are others.
        UnsafeContents: a name is not allowed in an image.
    """
    writer = NarWriter(info, "the Nix store")
    archive = Archive(writer.add)
    with LocalStore() as store:
        store.add(archive, info)
    writer.add(archive.end())
    return writer.end()


def _joined(prefix: bytes, name: bytes) -> bytes:
    name = name.rstrip(b"\0")
    return prefix.rstrip(b"\0") + b"/" + name if prefix[:1] != b"\0" else name
