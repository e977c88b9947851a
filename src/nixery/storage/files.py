"""Writing files so that a name stands for a whole file or for none."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import structlog

from nixery.errors import StorageError, storage_error
from nixery.files import DIRECTORY_MODE, hand_over, make_private_directory, open_regular, require_directory

_CANNOT_WRITE = "cannot write to the storage"

_CHUNK = 1 << 20

# Files of a listing that are looked at in one go, outside of the event loop.
_BATCH = 1000


# Files are never written after they got their name.
_STORED_MODE = 0o400

# Checked at start: the storage's own subdirectories, and their levels of directories.
_DIRECTORIES = {
    "blobs": 2,
    "records": 2,
    "temporary": 0,
    "gc-roots": 0,
    "locks": 0,
    "cache": 0,
    "quarantine": 0,
    "popularity": 0,
    "sources": 0,
}

_log = structlog.get_logger("nixery.storage")


def make_directory(directory: Path) -> None:
    """Make a directory, or accept an existing one, for the current user alone.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        make_private_directory(directory)
    except OSError as error:
        raise StorageError(f"cannot make the storage directory {directory}: {error.strerror}") from error


def make_storage_directory(root: Path) -> Path:
    """Make the directory of a storage, or close an existing one to other users.

    The root itself may be a symlink, since the operator sets it. Below it symlinks are refused: one in place
    of a directory would make the server read, write and delete elsewhere. Directories of other users stay
    unchanged, and the log names them.

    Returns:
        The root.

    Raises:
        StorageError: it cannot be made, or a symlink replaces one of its directories.
    """
    try:
        make_directory(root.resolve())
        _close(root)
        for name, levels in _DIRECTORIES.items():
            _refuse_symlinks(root / name, levels)
            if (root / name).is_dir():
                _close(root / name)
    except (OSError, RuntimeError) as error:  # Python's error for a loop of symlinks
        reason = error.strerror if isinstance(error, OSError) else "its symlinks lead to each other"
        raise StorageError(f"cannot look up the storage directory {root}: {reason}") from error
    return root


def _close(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid == os.geteuid():
        if stat.S_IMODE(status.st_mode) & 0o077:
            directory.chmod(DIRECTORY_MODE)
    # Root may work on the storage of a server that runs as another user, if no third user has access.
    elif os.geteuid() != 0 or stat.S_IMODE(status.st_mode) & 0o077:
        _log.warning(
            "the storage directory belongs to another user, who can read and replace what is stored, and its mode is not changed; "
            "give it to the user that the server runs as",
            directory=str(directory),
            owner=status.st_uid,
            user=os.geteuid(),
        )


def _refuse_symlinks(directory: Path, levels: int) -> None:
    if directory.is_symlink():
        raise StorageError(
            f"{directory} is a symlink, and those within a storage are not followed; "
            "move what it leads to there, or mount it there"
        )
    # Code that needs the directory reports any other file in its place, or ignores it.
    if levels and directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                    _refuse_symlinks(Path(entry.path), levels - 1)


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
            make_private_directory(directory)
            descriptor, name = tempfile.mkstemp(dir=directory)
        hand_over(descriptor, directory)
    except OSError as error:
        raise storage_error(_CANNOT_WRITE, error) from error
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
        raise storage_error(_CANNOT_WRITE, error) from error


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
        os.fchmod(descriptor, _STORED_MODE)
        os.fdatasync(descriptor)
        make_private_directory(place.parent)
        try:
            path.rename(place)
        except IsADirectoryError:
            # Not one of our files: move it to the unfinished files, which are removed later.
            place.rename(path.with_name(f"{path.name}.aside"))
            path.rename(place)
    except OSError as error:
        raise storage_error(_CANNOT_WRITE, error) from error


@dataclass(frozen=True, slots=True)
class FileSystemUse:
    """Usage of a file system, by all its users.

    Attributes:
        used: bytes.
        total: bytes that are available to us, as df(1) counts.
        used_files: inodes.
        total_files: inodes; 0 for a file system that makes them on demand.
    """

    used: int
    total: int
    used_files: int = 0
    total_files: int = 0


def file_system_use(directory: Path) -> FileSystemUse:
    """Look up the file system that a directory is on.

    Raises:
        StorageError: the file system does not answer.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise StorageError(f"cannot look up the file system of the storage: {error.strerror}") from error
    used, files = status.f_blocks - status.f_bfree, status.f_files - status.f_ffree
    return FileSystemUse(
        used * status.f_frsize,
        (used + status.f_bavail) * status.f_frsize,
        files,
        files + status.f_favail if status.f_files else 0,
    )


def delete_file(path: Path) -> None:
    """Delete a file that may be gone.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        require_directory(path.parent)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # with its directory
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {error.strerror}") from error


def move_file(path: Path, place: Path) -> None:
    """Move a file, which may be gone, to a directory that is made if it does not exist.

    Raises:
        StorageError: it cannot be moved.
    """
    try:
        make_private_directory(place.parent)
        with suppress(FileNotFoundError):
            path.rename(place)
    except OSError as error:
        raise StorageError(f"cannot move {path}: {error.strerror}") from error


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's contents, and let the kernel drop them from its cache.

    Raises:
        FileNotFoundError: it is missing, or no regular file.
        StorageError: it cannot be read.
    """
    try:
        descriptor, _ = open_regular(path)
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


async def scan(directory: Path, fan: str = "") -> AsyncIterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield the regular files in the subdirectories of a directory, or in one of them, in any order.

    The directory may be missing. Files that appear or disappear meanwhile may be left out. Symlinks are not
    followed.

    Raises:
        StorageError: a directory cannot be read.
    """
    entries = _walk(directory, fan)
    while batch := await asyncio.to_thread(lambda: list(_look(islice(entries, _BATCH)))):
        for entry, status in batch:
            if status is not None and stat.S_ISREG(status.st_mode):
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


def _walk(directory: Path, only: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as fans:
            for fan in fans:
                if only not in {"", fan.name} or not fan.is_dir(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(fan.path) as entries:
                    yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot list {directory}: {error.strerror}") from error
