"""Locks that processes of one machine have in common.

A lock is a file that is locked (``flock``). It goes with the process that holds it however that ends, ``kill -9`` included. Nobody
waits in here: a thread that does could not be ended.

Directories that live as long as a process does.

A process keeps its temporary data (unfinished files, protection from garbage collection) in a directory of
its own, on which it holds a lock. The kernel releases the lock when the process ends, even by ``kill -9``; so
the next process can tell leftovers from directories in use, and removes them.

Processes start and end concurrently. A directory that another process lists may be gone, or be replaced, when
it is opened; a process removes only a directory that it has opened and locked, and that still has its name.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import StorageError, storage_error
from nixery.files import FILE_MODE, hand_over, make_private_directory, remove_tree


class FileLocks:
    """Locks by name, in a directory. There are no more files in it than locks are held.

    Args:
        directory: made if it does not exist. What dead processes left in it is removed.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            make_private_directory(directory)
            for path in directory.iterdir():
                # A file that cannot be locked is not ours: skip it, and let the server start.
                with suppress(StorageError), self.attempt(path.name):
                    pass  # letting go of it removes it
        except OSError as error:
            raise StorageError(f"cannot make the directory {directory}: {error.strerror}") from error

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold a lock while the context lasts, if nobody else does; tell whether that is so.

        Args:
            name: without slashes.

        Raises:
            StorageError: there can be no lock.
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
            # Before the lock is given up, so that a file of this name is never somebody else's.
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def _lock(self, path: Path) -> int | None:
        while True:
            descriptor = _open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(descriptor, path):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            # Whoever held it has removed the file since we opened it: the next one may have made another.
            os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except FileNotFoundError:
        # Somebody deleted the directory, and perhaps all of the storage: what is made again can be stored again.
        make_private_directory(path.parent)
        descriptor = os.open(path, flags, FILE_MODE)
    hand_over(descriptor, path.parent)
    return descriptor


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


_PREFIX = "server-"


class ProcessDirectory:
    """A new directory for this process, below one that processes share.

    Attributes:
        path: absolute if the parent is.

    Args:
        parent: made if it does not exist. What other, dead processes left in it is removed.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        try:
            # Without the lock, another process could mistake a directory that is not locked yet for a
            # leftover.
            with _locked(parent):
                _sweep(parent)
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                hand_over(self.path, parent)
                self._lock = _open_lock(self.path)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"cannot make a directory in {parent}: {error.strerror}") from error

    def restore(self) -> None:
        """Make the directory again, and lock it, if somebody deleted it.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            if self._is_there():
                return
            # As above: a starting process must not have its directory swept before it is locked.
            with _locked(self.path.parent):
                make_private_directory(self.path)
                lock = _open_lock(self.path)
                os.close(self._lock)
                self._lock = lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"cannot make {self.path}: {error.strerror}") from error

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock), self.path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Remove the directory with everything in it."""
        remove_tree(self.path)
        os.close(self._lock)


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
            continue  # just removed by its process, no directory, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), directory.lstat()):
                remove_tree(directory)
        except (BlockingIOError, FileNotFoundError):
            continue  # in use, or just removed by its process
        finally:
            os.close(lock)


def _open_lock(directory: Path) -> int:
    # The directory itself can be locked; no file is needed for it.
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
