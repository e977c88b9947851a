"""A storage in a directory of a local file system.

::

    version                                                 the version of this layout
    (nixery.storage.versions) blobs/sha256/<first 2 hex digits>/<64 hex digits>       layers, configs and
    manifests (nixery.storage.blobs) blobs/sha256/<first 2 hex digits>/<64 hex digits>.size  their sizes
    (nixery.storage.blobs) quarantine/<64 hex digits>                              broken blobs
    records/<kind>/<first 2 characters>/<key>               small documents (nixery.storage.records)
    temporary/server-<random>/<random>                      unfinished files, by server process

Directories and files are private to one user. Every file is written to ``temporary/``, synced, and renamed to
its place, so that a name always stands for a whole file or for none.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from nixery.errors import BlobVerificationFailed, StorageError, storage_error
from nixery.files import (
    make_private_directory,
    open_regular,
    read_regular,
    require_directory,
)
from nixery.storage.driver import StoredObject
from nixery.storage.files import make_directory, move_to_place, temporary_file, write_all, write_file

# Bytes that are read at a time.
_CHUNK = 1 << 20

# Bytes that are read on the event loop, which costs less than a thread.
_SMALL = 64 * 1024

# Bytes that a probe writes: more than a manifest has.
_PROBE = 64 * 1024

# Files that a listing looks up at a time, off the event loop: few at first, as a short page needs no more.
_FIRST_BATCH, _BATCH = 64, 1024

# Levels of directories in a listing. A record with a long key has 7.
_DEPTH = 10

# Levels of directories that stay when they are empty: there are few of them. Clients choose the names of
# deeper ones.
_KEPT = 3


class FilesystemDriver:
    """The ``Driver`` of a directory.

    Args:
        root: need not exist; the first write makes it.
        temporary: for unfinished files; on the same file system, and belongs to this process.
    """

    is_remote = False

    def __init__(self, root: Path, temporary: Path) -> None:
        self.name = str(root)
        self._root = root
        self._temporary = temporary

    def make_directories(self) -> None:
        """Make the directories of blobs and records where they are missing; blocks.

        Raises:
            StorageError: they cannot be made.
        """
        for directory in ("blobs/sha256", "records"):
            make_directory(self._root / directory)

    def _path(self, name: str) -> str:
        return f"{self.name}/{name}"

    async def stat(self, name: str) -> StoredObject | None:
        """See ``Driver.stat``. Takes some microseconds, which are not worth leaving the event loop for."""
        return _stat(name, self._path(name))

    async def read(self, name: str, largest: int) -> bytes | None:
        """See ``Driver.read``. A file that is not regular counts as missing."""
        try:
            if largest <= _SMALL:
                return read_regular(self._path(name), largest)
            return await asyncio.to_thread(read_regular, self._path(name), largest)
        except OSError as error:
            raise storage_error(f"cannot read {name}", error) from error

    async def stream(self, name: str, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """See ``Driver.stream``."""
        try:
            descriptor, _ = open_regular(self._path(name))
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                file.seek(first)
                while last is None or first <= last:
                    wanted = _CHUNK if last is None else min(_CHUNK, last - first + 1)
                    chunk = await asyncio.to_thread(file.read, wanted)
                    if not chunk:
                        break
                    first += len(chunk)
                    yield chunk
                if last is None:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(f"cannot read {name}", error) from error
        if last is not None and first <= last:
            raise StorageError(f"cannot read {name}: {last - first + 1} bytes are missing at its end")

    async def write(self, name: str, content: bytes, *, renew: bool = False) -> None:
        """See ``Driver.write``."""
        if renew and self._touch(name):
            return
        await asyncio.to_thread(write_file, self._temporary, self._root / name, content)

    def _touch(self, name: str) -> bool:
        path = self._path(name)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return False
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(f"cannot renew {name}", error) from error
        return True

    @contextmanager
    def create(self) -> Iterator[_FileUpload]:
        """See ``Driver.create``."""
        with temporary_file(self._temporary) as (descriptor, path):
            yield _FileUpload(descriptor, path, self._root, self._temporary)

    async def move(self, name: str, target: str) -> None:
        """See ``Driver.move``."""
        await asyncio.to_thread(_move, self._root / name, self._root / target)

    async def delete(self, name: str) -> None:
        """See ``Driver.delete``."""
        await asyncio.to_thread(_delete, self._root / name, name.count("/") - _KEPT)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        """See ``Driver.list``. Memory grows with the largest directory.

        Files that appear or disappear meanwhile may be left out. Symlinks are not followed.
        """
        found = _look_up(_walk(self._path(directory), directory, after, _DEPTH))
        batch = _FIRST_BATCH
        while entries := await asyncio.to_thread(lambda: list(islice(found, batch))):  # noqa: B023 -- awaited
            for entry in entries:
                yield entry
            batch = _BATCH

    async def url(self, name: str) -> str | None:  # noqa: ARG002 -- clients cannot reach this disk
        """See ``Driver.url``."""
        return None

    async def probe(self) -> None:
        """See ``Driver.probe``."""
        await asyncio.to_thread(self._probe)

    def _probe(self) -> None:
        self.make_directories()
        with temporary_file(self._temporary) as (descriptor, _):
            write_all(descriptor, b"\0" * _PROBE)


class _FileUpload:
    """The ``Upload`` of a temporary file."""

    def __init__(self, descriptor: int, path: Path, root: Path, temporary: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._root = root
        self._temporary = temporary
        self._size = 0

    def write(self, data: bytes, /) -> None:
        """See ``Upload.write``."""
        write_all(self._descriptor, data)
        self._size += len(data)

    def commit(self, name: str, beside: Mapping[str, bytes]) -> StoredObject:
        """See ``Upload.commit``."""
        place = self._root / name
        found = _stat(name, str(place))
        if found is not None and found.size == self._size and all(map(self._holds, beside.items())):
            return found
        status = os.fstat(self._descriptor)
        if status.st_size != self._size:
            raise BlobVerificationFailed(
                f"{self._size} bytes of {name} were written, {status.st_size} are stored"
            )
        for other, content in beside.items():
            write_file(self._temporary, self._root / other, content)
        move_to_place(self._descriptor, self._path, place)
        return StoredObject(name, self._size, status.st_mtime, place)

    def _holds(self, item: tuple[str, bytes]) -> bool:
        name, content = item
        try:
            return read_regular(self._root / name, len(content)) == content
        except OSError as error:
            raise storage_error(f"cannot read {name}", error) from error


def _stat(name: str, path: str) -> StoredObject | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(f"cannot look up {name}", error) from error
    return (
        StoredObject(name, status.st_size, status.st_mtime, Path(path))
        if stat.S_ISREG(status.st_mode)
        else None
    )


def _move(path: Path, place: Path) -> None:
    try:
        make_private_directory(place.parent)
        with suppress(FileNotFoundError):
            path.rename(place)
            os.utime(place, follow_symlinks=False)
    except OSError as error:
        raise storage_error(f"cannot move {path.name}", error) from error


def _delete(path: Path, levels: int) -> None:
    try:
        require_directory(path.parent)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # with its directory
    except OSError as error:
        raise storage_error(f"cannot delete {path.name}", error) from error
    with suppress(OSError):  # one is not empty
        for directory in path.parents[: max(0, levels)]:
            directory.rmdir()


def _walk(path: str, name: str, after: str, depth: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the entries below a directory that are no directories, with their names, in order."""
    try:
        with os.scandir(path) as entries:
            # A directory's entries are ordered as the names of the files in it are.
            found = sorted(
                (f"{name}/{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}", entry)
                for entry in entries
            )
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(f"cannot list {name}", error) from error
    for below, entry in found:
        if not below.endswith("/"):
            if below > after:
                yield below, entry
        elif depth and (below > after or after.startswith(below)):
            yield from _walk(entry.path, below[:-1], after, depth - 1)


def _look_up(entries: Iterator[tuple[str, os.DirEntry[str]]]) -> Iterator[StoredObject]:
    for name, entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as error:
            raise storage_error(f"cannot look up {name}", error) from error
        if stat.S_ISREG(status.st_mode):
            yield StoredObject(name, status.st_size, status.st_mtime)
