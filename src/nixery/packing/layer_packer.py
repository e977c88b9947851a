"""One pass from entries to a compressed layer: read, archive, digest, compress, write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Protocol

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.packing import tar
from nixery.packing.compression import Compression
from nixery.packing.entries import Entry, GeneratedFile, RegularFile
from nixery.packing.one_behind import OneBehind

# Version of the archive's format: raise it with any change to the bytes of a layer, so that layers packed before
# are not taken for layers packed after.
_FORMAT = "nixery layer 1"

# Bytes handed to digest and compressor at a time. Always exactly this many but for the last: the compressor's
# output may depend on how its input is cut. Large enough for both to work without the interpreter lock most of the time.
_CHUNK = 1 << 20

_ZEROS = bytes(tar.BLOCK)

# Up to this many bytes, a copy costs less than the calls that save it.
_SMALL = 1 << 15
_READ = os.O_RDONLY | os.O_CLOEXEC


class Sink(Protocol):
    """Takes the compressed layer."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


class LayerPacker:
    """Packs layers; holds no state of any one of them, so one packer serves any number of threads.

    Attributes:
        media_type: of the layers.
        identity: of format and compressor. Same entries and same identity give the same bytes.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self.media_type = compression.media_type
        self.identity = f"{_FORMAT}, {compression.identity}"

    def pack(self, entries: Iterable[Entry], sink: Sink, check: Callable[[], None]) -> Digest:
        """Write the entries to the sink as one compressed tar.

        Args:
            entries: in the order of the archive, directories before what they hold.
            sink: where the compressed bytes go.
            check: called once a chunk; whatever it raises ends the packing.

        Returns:
            The diff id: the digest of the uncompressed tar.

        Raises:
            StorageError: a file cannot be read, or is not what it was when the tree was walked.
        """
        uncompressed = hashlib.sha256()
        compressor = self._compression.start()

        def take(chunk: memoryview) -> None:
            check()
            uncompressed.update(chunk)
            sink.write(compressor.compress(chunk))

        with OneBehind(take) as behind:
            archive = _Archive(behind.give)
            for entry in entries:
                archive.add(entry)
            rest = archive.end()
            behind.wait()
        take(rest)
        sink.write(compressor.flush())
        return Digest(uncompressed.hexdigest())


class _Archive:
    """A tar in the making, in two buffers: while one is filled, the other is digested and compressed.

    Files are read to where they belong in it: of what is in them, no object is ever made.
    """

    def __init__(self, take: Callable[[memoryview], None]) -> None:
        """Hand each full buffer to ``take``, which returns when it is done with the one before."""
        self._take = take
        self._buffer, self._other = bytearray(_CHUNK), bytearray(0)
        self._view = memoryview(self._buffer)
        self._filled = 0

    def add(self, entry: Entry) -> None:
        """Append an entry with its content."""
        header = tar.header(entry)
        match entry:
            case RegularFile(size=size) if size:
                content = _small_content(entry) if size <= _SMALL else None
                if content is None:
                    self._append(header)
                    self._append_file(entry)
                    self._append(_ZEROS[: -size % tar.BLOCK])
                else:
                    self._append(header + content + _ZEROS[: -size % tar.BLOCK])
            case GeneratedFile(content=content):
                self._append(header + content + _ZEROS[: -len(content) % tar.BLOCK])
            case _:
                self._append(header)

    def end(self) -> memoryview:
        """Complete the archive and return what has not been handed on: less than a chunk."""
        self._append(tar.END_OF_ARCHIVE)
        return self._view[: self._filled]

    def _append(self, data: bytes) -> None:
        end = self._filled + len(data)
        if end < _CHUNK:
            self._buffer[self._filled : end] = data
            self._filled = end
            return
        left = memoryview(data)
        while left:
            part = left[: _CHUNK - self._filled]
            self._view[self._filled : self._filled + len(part)] = part
            self._advance(len(part))
            left = left[len(part) :]

    def _append_file(self, file: RegularFile) -> None:
        try:
            descriptor = os.open(file.source, _READ)
            try:
                self._read(descriptor, file)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(file, error) from error

    def _read(self, descriptor: int, file: RegularFile) -> None:
        left, ended = file.size, False
        while left:
            # One byte more than there should be, where it fits: to see that the file ends then takes no call of its own.
            place = self._view[self._filled : self._filled + left + 1]
            count = os.readv(descriptor, (place,))
            if not 0 < count <= left:
                raise _changed(file)
            left -= count
            ended = count < len(place)
            self._advance(count)
        if not ended and os.read(descriptor, 1):
            raise _changed(file)

    def _advance(self, count: int) -> None:
        self._filled += count
        if self._filled == _CHUNK:
            self._take(self._view)
            # Most layers have less than a chunk, and need no other buffer.
            self._buffer, self._other = self._other or bytearray(_CHUNK), self._buffer
            self._view = memoryview(self._buffer)
            self._filled = 0


def _small_content(file: RegularFile) -> bytes | None:
    """Read a small file at once; ``None`` if what came is not as long as it has to be."""
    try:
        descriptor = os.open(file.source, _READ)
        try:
            content = os.read(descriptor, file.size + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(file, error) from error
    return content if len(content) == file.size else None


def _unreadable(file: RegularFile, error: OSError) -> StorageError:
    return StorageError(f"cannot read {file.name.decode(errors='replace')}: {error.strerror}")


def _changed(file: RegularFile) -> StorageError:
    return StorageError(f"{file.name.decode(errors='replace')} changed while it was packed")
