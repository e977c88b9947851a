"""Locks that processes of one machine have in common.

A lock is a file that is locked (``flock``). It goes with the process that holds it however that ends, ``kill -9`` included. Nobody
waits in here: a thread that does could not be ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import StorageError, storage_error
from nixery.private_files import FILE_MODE, hand_over, make_private_directory


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
