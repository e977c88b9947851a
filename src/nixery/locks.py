"""Locks, and directories that live as long as a process, shared by the processes of one machine.

Both are locked with ``flock``, so the kernel releases them when a process ends, even by ``kill -9``. Then the
next process can tell leftovers from files in use, and removes them. Processes start and end concurrently: a
name that another process has listed may be deleted, or belong to another file, when it is opened. So a
process removes only a file that it has opened and locked, and that still has its name. Nothing here blocks on
a lock for long: a thread that waits cannot be cancelled.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import StorageError, storage_error
from nixery.files import FILE_MODE, LIST, hand_over, make_private_directory, remove_tree

_PREFIX = "server-"


class FileLocks:
    """Locks by name: files in a directory, which exist only while their lock is held.

    Args:
        directory: made if it does not exist. Files of ended processes are removed.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            make_private_directory(directory)
            for path in directory.iterdir():
                # A file that cannot be locked is not a lock; skip it, and let the server start.
                with suppress(StorageError), self.attempt(path.name):
                    pass  # releasing it removes it
        except OSError as error:
            raise StorageError(f"cannot make the directory {directory}: {error.strerror}") from error

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold a lock while the context lasts, unless another holder has it; yield whether it is held.

        Args:
            name: without slashes.

        Raises:
            StorageError: the lock cannot be made.
        """
        path = self._directory / name
        try:
            descriptor = self._lock(path)
        except OSError as error:
            raise storage_error("cannot make a lock in the storage", error) from error
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            # Before the lock is released: afterwards, the file may belong to the next holder.
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def _lock(self, path: Path) -> int | None:
        while True:
            descriptor = _open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _has_name(descriptor, path):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            # The last holder removed the file after it was opened here; there may be another file by now.
            os.close(descriptor)


class ProcessDirectory:
    """A new directory for this process, in a directory that processes share.

    For temporary data: unfinished files, and roots of Nix's garbage collector.

    Attributes:
        path: absolute if the parent is.

    Args:
        parent: made if it does not exist. Directories of ended processes are removed.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        try:
            # Without this lock, another process could take a directory that is not locked yet for a leftover.
            with _locked(parent):
                _sweep(parent)
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                hand_over(self.path, parent)
                self._lock = _open_lock(self.path)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"cannot make a directory in {parent}: {error.strerror}") from error

    def restore(self) -> None:
        """Make and lock the directory again, if it was deleted.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            if _has_name(self._lock, self.path):
                return
            with _locked(self.path.parent):
                make_private_directory(self.path)
                lock = _open_lock(self.path)
                os.close(self._lock)
                self._lock = lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"cannot make {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Remove the directory with all of its contents."""
        remove_tree(self.path)
        os.close(self._lock)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except FileNotFoundError:
        # The directory was deleted, perhaps with the whole storage.
        make_private_directory(path.parent)
        descriptor = os.open(path, flags, FILE_MODE)
    hand_over(descriptor, path.parent)
    return descriptor


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    make_private_directory(directory)
    lock = _open_lock(directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sweep(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            lock = _open_lock(directory)
        except OSError:
            continue  # just removed by its process, not a directory, or inaccessible
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(lock, directory):
                remove_tree(directory)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(lock)


def _open_lock(directory: Path) -> int:
    # flock works on the directory itself.
    return os.open(directory, LIST)
