"""A storage in a directory of a local file system.

::

    version                                                 the version of this layout (nixery.storage.opening)
    blobs/sha256/<first 2 hex digits>/<64 hex digits>       layers, configs and manifests (nixery.storage.blobs)
    quarantine/<64 hex digits>                              broken blobs
    records/<kind>/<first 2 characters>/<key>               small documents (nixery.storage.records)
    temporary/server-<random>/<random>                      unfinished files, by server process

Directories and files are private to one user. Every file is written to ``temporary/``, synced, and renamed to its place, so that
a name always stands for a whole file or for none.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import structlog

from nixery.errors import BlobVerificationFailed, StorageError, storage_error
from nixery.files import (
    DIRECTORY_MODE,
    hand_over,
    make_private_directory,
    open_regular,
    read_regular,
    require_directory,
)
from nixery.storage.driver import Entry

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

_CANNOT_WRITE = "cannot write to the storage"

_log = structlog.get_logger("nixery.storage")


class FilesystemDriver:
    """The ``Driver`` of a directory.

    Args:
        root: made if it does not exist.
        temporary: for unfinished files; exists, on the same file system, and belongs to this process.

    Raises:
        StorageError: the directory cannot be made.
    """

    is_remote = False

    def __init__(self, root: Path, temporary: Path) -> None:
        self.name = str(root)
        self._root = root
        self._temporary = temporary
        self._restore()

    def _restore(self) -> None:
        for directory in ("blobs/sha256", "records"):
            make_directory(self._root / directory)

    def _path(self, name: str) -> str:
        return f"{self.name}/{name}"

    async def stat(self, name: str) -> Entry | None:
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
        await asyncio.to_thread(_delete, self._root / name)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[Entry, None]:
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
        self._restore()
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

    def commit(self, name: str, beside: Mapping[str, bytes]) -> Entry:
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
        return Entry(name, self._size, status.st_mtime, place)

    def _holds(self, item: tuple[str, bytes]) -> bool:
        name, content = item
        try:
            return read_regular(self._root / name, len(content)) == content
        except OSError as error:
            raise storage_error(f"cannot read {name}", error) from error


def _stat(name: str, path: str) -> Entry | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(f"cannot look up {name}", error) from error
    return Entry(name, status.st_size, status.st_mtime, Path(path)) if stat.S_ISREG(status.st_mode) else None


def _move(path: Path, place: Path) -> None:
    try:
        make_private_directory(place.parent)
        with suppress(FileNotFoundError):
            path.rename(place)
            os.utime(place, follow_symlinks=False)
    except OSError as error:
        raise storage_error(f"cannot move {path.name}", error) from error


def _delete(path: Path) -> None:
    try:
        require_directory(path.parent)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # with its directory
    except OSError as error:
        raise storage_error(f"cannot delete {path.name}", error) from error


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


def _look_up(entries: Iterator[tuple[str, os.DirEntry[str]]]) -> Iterator[Entry]:
    for name, entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as error:
            raise storage_error(f"cannot look up {name}", error) from error
        if stat.S_ISREG(status.st_mode):
            yield Entry(name, status.st_size, status.st_mtime)


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
