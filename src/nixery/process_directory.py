"""Directories that live as long as a process does.

What a process needs only while it works (unfinished files, protection from garbage collection) is in a directory of its own,
on which it holds a lock. The lock goes with the process however that ends, ``kill -9`` included; so the next process
can tell what has been left behind from what is in use, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixery.errors import StorageError

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
            parent.mkdir(parents=True, exist_ok=True)
            # Without this, another process could take a directory that is not locked yet for one that was left behind.
            with _locked(parent):
                _sweep(parent)
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
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
            self.path.mkdir(parents=True, exist_ok=True)
            if os.path.sameopenfile(self._lock, lock := _open_lock(self.path)):
                os.close(lock)
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"cannot make {self.path}: {error.strerror}") from error
        os.close(self._lock)
        self._lock = lock

    def close(self) -> None:
        """Remove the directory with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = _open_lock(directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sweep(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        lock = _open_lock(directory)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue  # its process lives
        finally:
            os.close(lock)


def _open_lock(directory: Path) -> int:
    # The directory itself can be locked; no file is needed for it.
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
