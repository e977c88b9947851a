"""Blobs and records in a directory of a local file system.

::

    blobs/sha256/<first 2 hex digits>/<64 hex digits>       layers, configs and manifests alike
    blobs/sha256/<first 2 hex digits>/<64 hex digits>.size  how many bytes it has to have, in decimal digits
    quarantine/<64 hex digits>                              broken blobs
    records/<kind>/<first 2 characters>/<key>               small JSON documents
    temporary/server-<random>/<random>                      unfinished files, by server process

Directories and files are private to one user. Every file is written to ``temporary/``, synced, and renamed to
its place, so that a name is always a whole file or missing; readers and any number of writers, in other
processes too, need no lock. A blob with another size than it was stored with (a full or broken disk, a
restored backup) counts as missing: the next build that makes it stores it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import BlobUnknown, BlobVerificationFailed, InvalidDigest, StorageError
from nixery.files import open_regular, read_regular
from nixery.oci.digest import Digest
from nixery.storage.files import (
    chunks,
    delete_file,
    make_directory,
    move_file,
    move_to_place,
    scan,
    temporary_file,
    write_all,
    write_file,
)
from nixery.storage.store import LARGEST_DOCUMENT, QUARANTINED, ListedBlob, StoredBlob, StoredFile

# Bytes that are read at a time.
_CHUNK = 1024 * 1024

# Bytes that are written to see whether there is room: more than a manifest has.
_PROBE = 64 * 1024

# Limit in bytes for a file with a blob's size.
_SIZE = 20


class FilesystemBlobStore:
    """The ``BlobStore`` in a directory.

    Args:
        root: made if it does not exist.
        temporary: for unfinished files; exists, on the same file system, and belongs to this process.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(self, root: Path, temporary: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._quarantine = root / "quarantine"
        self._temporary = temporary
        make_directory(self._blobs)

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.hex[:2] / digest.hex

    async def find(self, digest: Digest) -> StoredFile | None:
        """See ``BlobStore.find``. A ``stat`` and a few bytes, which are not worth leaving the event loop for."""
        return _find(digest, self._path(digest))

    async def find_cached(self, digest: Digest) -> StoredFile | None:
        """See ``BlobStore.recall``. Asking is cheap here."""
        return _find(digest, self._path(digest))

    async def read(self, blob: StoredBlob) -> bytes | None:
        """See ``BlobStore.read``."""
        try:
            return await asyncio.to_thread(_verified, self._path(blob.digest), blob.digest)
        except OSError as error:
            raise StorageError(f"cannot read blob {blob.digest}: {error.strerror}") from error

    async def url(self, blob: StoredBlob) -> str | None:  # noqa: ARG002 -- nobody else has this disk
        """See ``BlobStore.url``."""
        return None

    async def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """See ``BlobStore.stream``."""
        try:
            descriptor, _ = open_regular(self._path(blob.digest))
            with os.fdopen(descriptor, "rb") as file:
                file.seek(first)
                while first <= last:
                    chunk = await asyncio.to_thread(file.read, min(_CHUNK, last - first + 1))
                    if not chunk:
                        raise StorageError(f"blob {blob.digest} is too short")
                    first += len(chunk)
                    yield chunk
        except OSError as error:
            raise StorageError(f"cannot read blob {blob.digest}: {error.strerror}") from error

    async def put(self, digest: Digest, content: bytes) -> None:
        """See ``BlobStore.put``."""
        if Digest.of(content) != digest:
            raise BlobVerificationFailed(f"content that was to be stored as {digest} is {Digest.of(content)}")
        place = self._path(digest)
        # It is small and in memory, so it costs little to look at more than the size of what is there.
        if await asyncio.to_thread(_holds, place, content):
            return
        # Whichever of the two has its name first, a blob is there once both have; so they are synced at the same time.
        await asyncio.gather(
            asyncio.to_thread(_write_size, self._temporary, place, len(content)),
            asyncio.to_thread(write_file, self._temporary, place, content),
        )

    @contextmanager
    def create(self) -> Iterator[FilesystemBlobWriter]:
        """See ``BlobStore.create``."""
        with temporary_file(self._temporary) as (descriptor, path):
            yield FilesystemBlobWriter(descriptor, path, self._path, self._temporary)

    async def scan(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan``."""
        async for entry, status in scan(self._blobs):
            with suppress(InvalidDigest):
                digest = Digest.parse(f"sha256:{entry.name}")
                if entry.path.endswith(f"/{digest.hex[:2]}/{digest.hex}"):
                    yield ListedBlob(digest, status.st_size, status.st_mtime)

    async def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan_leftovers``: sizes without blobs."""
        async for entry, status in scan(self._blobs):
            with suppress(InvalidDigest):
                digest = Digest.parse(f"sha256:{entry.name.removesuffix('.size')}")
                if entry.name.endswith(".size") and not _is_taken(self._path(digest)):
                    yield ListedBlob(digest, 0, status.st_mtime)

    async def probe(self) -> None:
        """See ``BlobStore.probe``."""
        await asyncio.to_thread(self._probe)

    def _probe(self) -> None:
        make_directory(self._blobs)
        with temporary_file(self._temporary) as (descriptor, _):
            write_all(descriptor, b"\0" * _PROBE)

    async def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """See ``BlobStore.chunks``."""
        try:
            async for chunk in chunks(self._path(digest)):
                yield chunk
        except FileNotFoundError:
            raise BlobUnknown(str(digest)) from None

    async def quarantine(self, digest: Digest) -> None:
        """See ``BlobStore.quarantine``."""
        place = self._path(digest)
        await asyncio.to_thread(move_file, place, self._quarantine / place.name)
        await asyncio.to_thread(delete_file, _size_file(place))
        await asyncio.to_thread(self._shorten_quarantine, self._quarantine / place.name)

    def _shorten_quarantine(self, last: Path) -> None:
        # The blob's own time is when it was stored.
        with suppress(OSError):
            os.utime(last, follow_symlinks=False)
            kept = sorted((entry.lstat().st_mtime, entry) for entry in self._quarantine.iterdir())
            for _, entry in kept[:-QUARANTINED]:
                entry.unlink()

    async def delete(self, digest: Digest) -> None:
        """See ``BlobStore.delete``."""
        place = self._path(digest)
        # The size last: without a blob it means nothing.
        for path in (place, _size_file(place)):
            await asyncio.to_thread(delete_file, path)


class FilesystemBlobWriter:
    """The ``BlobWriter`` of a temporary file. Digests what it writes, so that nobody has to be believed."""

    def __init__(self, descriptor: int, path: Path, place: Callable[[Digest], Path], temporary: Path) -> None:
        self._temporary = temporary
        self._descriptor = descriptor
        self._path = path
        self._place = place
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes, /) -> None:
        """See ``BlobWriter.write``."""
        write_all(self._descriptor, data)
        self._hash.update(data)
        self._size += len(data)

    def commit(self) -> StoredFile:
        """See ``BlobWriter.commit``."""
        place = self._place(digest := Digest(self._hash.hexdigest()))
        found = _find(digest, place)
        if found is not None and found.size == self._size:
            return found
        size = os.fstat(self._descriptor).st_size
        if size != self._size:
            raise BlobVerificationFailed(f"{self._size} bytes were written of {digest}, {size} are stored")
        _write_size(self._temporary, place, size)
        move_to_place(self._descriptor, self._path, place)
        return StoredFile(digest, size, place)


def _find(digest: Digest, path: Path) -> StoredFile | None:
    try:
        status = os.lstat(path)
        expected = read_regular(f"{path}.size", _SIZE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot look up blob {digest}: {error.strerror}") from error
    size = status.st_size
    return (
        StoredFile(digest, size, path) if stat.S_ISREG(status.st_mode) and expected == b"%d" % size else None
    )


def _verified(path: Path, digest: Digest) -> bytes | None:
    content = read_regular(path, LARGEST_DOCUMENT)
    return content if content is not None and Digest.of(content) == digest else None


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path)


def _holds(path: Path, content: bytes) -> bool:
    size = b"%d" % len(content)
    try:
        return read_regular(path, len(content)) == content and read_regular(_size_file(path), _SIZE) == size
    except OSError:
        return False


def _size_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.size")


def _write_size(temporary: Path, place: Path, size: int) -> None:
    # A blob without it would not be found.
    write_file(temporary, _size_file(place), b"%d" % size)
