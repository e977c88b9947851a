"""Decompression of NARs as streams: whatever a cache sends, the memory for it is bounded."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard
from isal import igzip_lib

from nixery.binary_caches.narinfo import Compression

# Bytes of the longest piece.
PIECE = 256 * 1024

# Bytes of memory. The largest window of `zstd` without --ultra is 8 MiB, with --ultra or --long 128 MiB; `xz -9` needs
# 65 MiB, and `xz -6`, as Nix has it, 9 MiB.
LARGEST_MEMORY = 128 * 1024 * 1024
USUAL_MEMORY = 16 * 1024 * 1024
_XZ_MEMORY = 80 * 1024 * 1024

# Of the libraries' messages, which have no errors of their own for it.
_ZSTD_MEMORY, _XZ_MEMORY_ERROR = "requires too much memory", "Memory usage limit exceeded"

# The types of isal take the class for an instance.
_ISAL_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]


class NeedsMemory(ValueError):
    """A stream cannot be decompressed within the given memory."""

    def __init__(self, memory: int) -> None:
        super().__init__(f"cannot be decompressed with {memory // 1024 // 1024} MiB of memory")


class _Decompressor(Protocol):
    """The interface of Python's decompressors."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def decompressed(
    compression: Compression, pieces: Iterator[bytes], memory: int = LARGEST_MEMORY
) -> Iterator[bytes]:
    """Decompress a stream of one or several members; yields no empty piece, and none above ``PIECE``.

    Args:
        compression: of the stream.
        pieces: of the stream.
        memory: the most that a decompressor may take for what it has to look back at, in bytes.

    Raises:
        NeedsMemory: on reading, that is not enough.
        ValueError: on reading, it cannot be decompressed.
    """
    match compression:
        case "none":
            return _cut(pieces)
        case "zstd":
            return _zstd(pieces, memory)
        case "xz":
            limit = min(memory, _XZ_MEMORY)
            return _members(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limit), pieces, limit)
        case "bzip2":
            return _members(bz2.BZ2Decompressor, pieces, memory)
        case "gzip":
            return _members(lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), pieces, memory)


def _cut(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), PIECE):
            yield piece[start : start + PIECE]


class _Reader:
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while not self._rest:
            try:
                self._rest = next(self._pieces)
            except StopIteration:
                return b""
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def _zstd(pieces: Iterator[bytes], memory: int) -> Iterator[bytes]:
    # The binding takes any object with `read`.
    reader: zstandard.ZstdDecompressionReader = zstandard.ZstdDecompressor(
        max_window_size=memory
    ).stream_reader(_Reader(pieces), read_size=PIECE, read_across_frames=True)  # type: ignore[arg-type]
    while True:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as error:
            if _ZSTD_MEMORY in str(error):
                raise NeedsMemory(memory) from error
            raise ValueError(f"cannot be decompressed: {error}") from error
        if not piece:
            return
        yield piece


def _members(start: Callable[[], _Decompressor], pieces: Iterator[bytes], memory: int) -> Iterator[bytes]:
    decompressor, between = start(), False
    for data in pieces:
        rest: bytes | None = data
        while rest is not None:
            if between:
                # xz pads members with zeros.
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                decompressor, between = start(), False
            try:
                piece = decompressor.decompress(rest, PIECE)
            except (lzma.LZMAError, _ISAL_ERROR, OSError) as error:
                if str(error) == _XZ_MEMORY_ERROR:
                    raise NeedsMemory(memory) from error
                raise ValueError(f"cannot be decompressed: {error}") from error
            if piece:
                yield piece
            if decompressor.eof:
                between, rest = True, decompressor.unused_data
            else:
                rest = None if decompressor.needs_input else b""
    if not between:
        raise ValueError("is cut off")
