"""Writing files so that a name stands for a whole file or for none."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from nixery.errors import StorageError, StorageFull

# The disk, or our share of it, is full; or a file may not become as large as that (setrlimit(2)).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Blobs and records hold nothing that is not served to everybody; nobody writes to them again.
_MODE = 0o444

_CHUNK = 1 << 20

# Files of a listing that are looked at in one go, outside of the event loop.
_BATCH = 1000


def cannot_write(error: OSError) -> StorageError:
    """Say in our terms why something cannot be written."""
    kind = StorageFull if error.errno in _FULL else StorageError
    return kind(f"cannot write to the storage: {error.strerror}")


def make_directory(directory: Path) -> None:
    """Make a directory that may exist.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the storage directory {directory}: {error.strerror}") from error


@contextmanager
def temporary_file(directory: Path) -> Iterator[tuple[int, Path]]:
    """Open a new file for writing; it is gone afterwards, unless it was moved to its place.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        try:
            descriptor, name = tempfile.mkstemp(dir=directory)
        except FileNotFoundError:
            # Somebody deleted it, and perhaps all of the storage: what is made again can be stored again.
            directory.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=directory)
    except OSError as error:
        raise cannot_write(error) from error
    try:
        yield descriptor, Path(name)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however many calls that takes.

    Raises:
        StorageError: the file system does not take them, for example because it is full.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise cannot_write(error) from error


def write_file(temporary: Path, place: Path, content: bytes) -> None:
    """Write a small file as a whole.

    Raises:
        StorageError: it cannot be written.
    """
    with temporary_file(temporary) as (descriptor, path):
        write_all(descriptor, content)
        move_to_place(descriptor, path, place)


def move_to_place(descriptor: int, path: Path, place: Path) -> None:
    """Give a written file its name, once its content is safe from a crash of the machine.

    Raises:
        StorageError: it cannot be synced or renamed.
    """
    try:
        os.fchmod(descriptor, _MODE)
        os.fdatasync(descriptor)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    except OSError as error:
        raise cannot_write(error) from error


def used_and_total(directory: Path) -> tuple[int, int]:
    """Return how many bytes of a file system are used, and how many there are for us, as df(1) counts.

    Raises:
        StorageError: it cannot be asked.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise StorageError(f"cannot look up the file system of the storage: {error.strerror}") from error
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    return used, used + status.f_bavail * status.f_frsize


def delete_file(path: Path) -> None:
    """Delete a file that may be gone.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {error.strerror}") from error


def move_file(path: Path, place: Path) -> None:
    """Move a file, which may be gone, to a directory that is made if it does not exist.

    Raises:
        StorageError: it cannot be moved.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(place)
    except OSError as error:
        raise StorageError(f"cannot move {path}: {error.strerror}") from error


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield what is in a file; the kernel does not need to keep it in memory.

    Raises:
        FileNotFoundError: it is gone.
        StorageError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        while chunk := await asyncio.to_thread(os.read, descriptor, _CHUNK):
            yield chunk
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


async def scan(directory: Path) -> AsyncIterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield the files of all directories in a directory, which need not exist, in any order.

    What appears or goes meanwhile may be left out.

    Raises:
        StorageError: a directory cannot be read.
    """
    entries = _walk(directory)
    while batch := await asyncio.to_thread(lambda: list(_look(islice(entries, _BATCH)))):
        for entry, status in batch:
            if status is not None:
                yield entry, status


def _look(
    entries: Iterable[os.DirEntry[str]],
) -> Iterator[tuple[os.DirEntry[str], os.stat_result | None]]:
    for entry in entries:
        try:
            yield entry, entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            yield entry, None  # deleted meanwhile
        except OSError as error:
            raise StorageError(f"cannot look up {entry.path}: {error.strerror}") from error


def _walk(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as fans:
            for fan in fans:
                with suppress(FileNotFoundError), os.scandir(fan.path) as entries:
                    yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot list {directory}: {error.strerror}") from error
