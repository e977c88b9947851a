"""Directories that live as long as a process does.

What a process needs only while it works (unfinished files, protection from garbage collection) is in a directory of its own,
on which it holds a lock. The lock goes with the process however that ends, ``kill -9`` included; so the next process
can tell what has been left behind from what is in use, and removes it.

Processes start and end at the same time. So a directory that another process lists may be gone, or be something else, when it is
opened; only what could be opened and locked, and is still what the name stands for, is removed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import StorageError
from nixery.private_files import hand_over, make_private_directory

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
            # Without the lock, another process could take a directory that is not locked yet for one that was left behind.
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
            # As above: a process that starts just now must not sweep it before it is locked.
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


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it, as far as that is possible. No symlink in it is followed.

    A package set can be deeper than the interpreter's stack and than a process may have open files, which ``shutil.rmtree`` takes for
    each level: it raised ``RecursionError``, and no server started on that storage again. Here each directory is moved to the top of
    the tree before it is gone through.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):
        top = os.open(directory, flags)
        try:
            # A name of our own, so that nothing that is there has the same one.
            own = Path(tempfile.mkdtemp(prefix="removing-", dir=directory)).name
            pending, number = deque(["."]), 0
            while pending:
                name = pending.popleft()
                with suppress(OSError):
                    inner = os.open(name, flags, dir_fd=top)
                    try:
                        for child in os.listdir(inner):  # noqa: PTH208 -- by descriptor
                            if name == "." and child == own:
                                continue
                            try:
                                os.unlink(child, dir_fd=inner)
                            except IsADirectoryError:
                                number += 1
                                moved = f"{own}/{number}"
                                with suppress(OSError):
                                    os.rename(child, moved, src_dir_fd=inner, dst_dir_fd=top)
                                    pending.append(moved)
                            except OSError:
                                continue
                    finally:
                        os.close(inner)
                    if name != ".":
                        os.rmdir(name, dir_fd=top)
            os.rmdir(own, dir_fd=top)
        finally:
            os.close(top)
    with suppress(OSError):
        directory.rmdir()


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
            continue  # its process has just removed it, or it is no directory, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), directory.lstat()):
                remove_tree(directory)
        except (BlockingIOError, FileNotFoundError):
            continue  # its process lives, or has just removed it
        finally:
            os.close(lock)


def _open_lock(directory: Path) -> int:
    # The directory itself can be locked; no file is needed for it.
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
