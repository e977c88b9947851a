"""The directory of a storage, and writing files so that a name stands for a whole file or for none."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from nixery.errors import StorageError, storage_error
from nixery.files import DIRECTORY_MODE, hand_over, make_private_directory

# Files are never written again after they were renamed to their place.
_STORED_MODE = 0o400

# The storage's own subdirectories, checked at start, with the levels of directories below each.
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

# The kind of records whose keys may be longer than a file name, the end of the name of a directory for a part
# of such a key, and the most of them in one path (nixery.storage.records).
_LONG_KEYS, _PART, _MOST_PARTS = "records/tags-in-order", "+", 3

_CANNOT_WRITE = "cannot write to the storage"

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
        for directory in (root / _LONG_KEYS).glob("*"):
            _refuse_symlinks(directory, _MOST_PARTS, _PART)
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


def _refuse_symlinks(directory: Path, levels: int, ending: str = "") -> None:
    if directory.is_symlink():
        raise StorageError(
            f"{directory} is a symlink, and those within a storage are not followed; "
            "move what it leads to there, or mount it there"
        )
    # Code that needs the directory reports any other file in its place, or ignores it.
    if levels and directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                is_ours = entry.name.endswith(ending)
                if is_ours and (entry.is_symlink() or entry.is_dir(follow_symlinks=False)):
                    _refuse_symlinks(Path(entry.path), levels - 1, ending)


@contextmanager
def temporary_file(directory: Path) -> Iterator[tuple[int, Path]]:
    """Open a new file for writing, and delete it afterwards, unless it was renamed.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        try:
            descriptor, name = tempfile.mkstemp(dir=directory)
        except FileNotFoundError:
            # Another program deleted the directory, or the whole storage.
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
    """Write all bytes, in as many calls as that takes.

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
    """Sync a written file and rename it to its place, so that a crash of the machine leaves all of it or nothing.

    Raises:
        StorageError: it cannot be synced or renamed.
    """
    try:
        os.fchmod(descriptor, _STORED_MODE)
        os.fdatasync(descriptor)
        try:
            _rename(path, place)
        except FileNotFoundError:
            # The deletion of its last file removed the directory at the same moment.
            _rename(path, place)
        except IsADirectoryError:
            # Not one of our files: move it to the unfinished files, which are removed later.
            place.rename(path.with_name(f"{path.name}.aside"))
            path.rename(place)
    except OSError as error:
        raise storage_error(_CANNOT_WRITE, error) from error


def _rename(path: Path, place: Path) -> None:
    make_private_directory(place.parent)
    path.rename(place)


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
