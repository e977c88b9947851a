"""Protect store paths from Nix's garbage collector, and make it wait.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. The server's
roots are in a directory of its process, so that the next process removes the roots of a killed one.

The collector locks a file before it searches for roots, and a process that registers a temporary root takes the
same lock, shared (``LocalStore::collectGarbage`` and ``addTempRoot`` in Nix's ``gc.cc``, since 2.0). Holding
that lock bridges the time between two commands, of which the first ends with its protection and the second has
none yet. It needs the rights of the store's owner: a client of Nix's daemon runs without this lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from nixery.errors import storage_error

# Seconds to wait for a running collection, which keeps paths written during it; and seconds between attempts.
_LOCK_TIMEOUT = 10.0
_POLL = 0.02


class NixGarbageCollector:
    """Nix's garbage collector, as far as other processes can hold it off.

    Args:
        state: Nix's state directory.
        roots: absolute; for the roots of this process, and made if missing.
    """

    def __init__(self, state: Path, roots: Path) -> None:
        self._lock = state / "gc.lock"
        self._roots = roots

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[Callable[[], None]]:
        """Keep collections from starting while the context lasts, if possible.

        Yields:
            A function that lets the collector continue early, so that it does not wait for a build.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield lambda: None
            return
        try:
            await _lock_shared(descriptor)
            yield lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def is_running(self) -> bool:
        """Whether a collector holds its lock; false if the lock is inaccessible."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    @contextmanager
    def root(self) -> Iterator[Path]:
        """Return a path to register roots at; they are removed when the context ends.

        Raises:
            StorageError: the directory cannot be written to.
        """
        try:
            # It may have been deleted, with the whole storage.
            self._roots.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="build-", dir=self._roots))
        except OSError as error:
            raise storage_error("cannot write to the storage", error) from error
        try:
            yield place / "result"
        finally:
            shutil.rmtree(place, ignore_errors=True)


async def _lock_shared(descriptor: int) -> None:
    end = asyncio.get_running_loop().time() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            if asyncio.get_running_loop().time() > end:
                return
            await asyncio.sleep(_POLL)
        else:
            return
