"""Write a tar archive as chunks of one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from nixery.errors import StorageError, shown
from nixery.packing import tar

# Bytes of every chunk but the last: a compressor's output may depend on how its input is cut. Large enough
# for digest and compressor to run without the interpreter lock most of the time.
CHUNK = 1 << 20

# Files of up to this many bytes are read by one call into a separate object, which is cheaper than the calls
# that would avoid it.
_SMALL = 1 << 15

# Bytes of headers and small files that are gathered before they are copied into the buffer: they fit into a
# processor's cache, and one large copy costs a fraction of many small ones.
_GATHERED = 1 << 16


class Archive:
    """A tar archive in two buffers: while one is filled, the consumer owns the other.

    Names are bytes, relative to the image's root, without a leading or trailing slash, a directory before its
    contents. Large files are read directly into the buffer, without a separate object. Names that a
    runtime would not treat as plain names are refused (``UnsafeContents``, see ``tar``).

    There is a method for each kind of entry rather than an iterator of entries: making an object for each of
    100,000 names costs as much as their headers.

    Args:
        take: called with each full buffer, of ``CHUNK`` bytes. It returns once the previous buffer is free.
    """

    def __init__(self, take: Callable[[memoryview], None]) -> None:
        self._take = take
        self._buffer, self._other = bytearray(CHUNK), bytearray(0)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._gathered: list[bytes | memoryview] = []
        self._gathered_size = 0

    def directory(self, name: bytes, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        """Append a directory; its owner is the ids of a user and a group."""
        self._append(tar.directory(name, mode, owner))

    def symlink(self, name: bytes, target: bytes) -> None:
        """Append a symlink; its target is written as it is."""
        self._append(tar.symlink(name, target))

    def file(
        self, name: bytes, mode: int, content: bytes | memoryview, owner: tuple[int, int] = (0, 0)
    ) -> None:
        """Append a file with the given content; its owner is the ids of a user and a group."""
        size = len(content)
        header, padding = tar.file(name, mode, size, owner), tar.padding(size)
        self._gathered += (header, content, padding)
        self._gathered_size += len(header) + size + len(padding)
        if self._gathered_size >= _GATHERED:
            self._put()

    def file_of(self, name: bytes, mode: int, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Append a file whose content comes in pieces, each of which is copied before the next one is asked for.

        Args:
            name: in the archive.
            mode: in the archive.
            size: of all pieces together, in bytes.
            pieces: the content. If they raise an error, the archive cannot be completed.

        Raises:
            ValueError: the pieces have another size.
        """
        self._append(tar.file(name, mode, size))
        self._put()
        left = size
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            self._copy(piece)
        if left:
            raise ValueError(f"{shown(name)} does not have {size} bytes")
        self._append(tar.padding(size))

    def file_from(self, descriptor: int, name: bytes, mode: int, size: int) -> None:
        """Append a copy of an open file, which is read from its beginning.

        Args:
            descriptor: of the open file; it stays open.
            name: in the archive.
            mode: in the archive.
            size: in bytes.

        Raises:
            StorageError: it cannot be read, or has another size.
        """
        if size <= _SMALL:
            try:
                content = os.pread(descriptor, size + 1, 0)
            except OSError as error:
                raise unreadable(name, error) from error
            if len(content) == size:
                self.file(name, mode, content)
                return
        self._append(tar.file(name, mode, size))
        self._put()
        if not self._read(descriptor, name, size):
            raise StorageError(f"{shown(name)} changed while it was packed")
        self._append(tar.padding(size))

    def end(self) -> memoryview:
        """Complete the archive; return the rest that was not passed on, which is less than a chunk."""
        self._append(tar.END_OF_ARCHIVE)
        self._put()
        return self._view[: self._filled]

    def _append(self, data: bytes) -> None:
        self._gathered.append(data)
        self._gathered_size += len(data)
        if self._gathered_size >= _GATHERED:
            self._put()

    def _put(self) -> None:
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_size = 0
        self._copy(data)

    def _copy(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            part = left[: CHUNK - self._filled]
            self._view[self._filled : self._filled + len(part)] = part
            self._advance(len(part))
            left = left[len(part) :]

    def _read(self, descriptor: int, name: bytes, size: int) -> bool:
        """Read a file into the buffer; return whether it has the expected size."""
        done, ended = 0, False
        while done < size:
            # One byte more than expected, if it fits, detects the end of the file without another call.
            place = self._view[self._filled : self._filled + size - done + 1]
            try:
                count = os.preadv(descriptor, (place,), done)
            except OSError as error:
                raise unreadable(name, error) from error
            if not 0 < count <= size - done:
                return False
            done += count
            ended = count < len(place)
            self._advance(count)
        # Reading at the end of a file touches no disk.
        return ended or not os.pread(descriptor, 1, size)

    def _advance(self, count: int) -> None:
        self._filled += count
        if self._filled == CHUNK:
            self._take(self._view)
            # Most layers are smaller than a chunk, and need no second buffer.
            self._buffer, self._other = self._other or bytearray(CHUNK), self._buffer
            self._view = memoryview(self._buffer)
            self._filled = 0


def unreadable(name: bytes, error: OSError) -> StorageError:
    """Return the error for a file that cannot be read."""
    return StorageError(f"cannot read {shown(name)}: {error.strerror}")
