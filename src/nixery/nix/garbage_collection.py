"""Protect store paths from Nix's garbage collector, and make it wait.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. The server's
roots are in a directory of its process, so that the next process removes the roots of a killed one.

The collector locks a file before it searches for roots, and a process that registers a temporary root takes the
same lock, shared (``LocalStore::collectGarbage`` and ``addTempRoot`` in Nix's ``gc.cc``, since 2.0). Holding
that lock bridges the time between two commands, of which the first ends with its protection and the second has
none yet. It needs the rights of the store's owner: a client of Nix's daemon runs without this lock.

The owner can also register roots without a process of Nix: ``gcroots/auto`` has a symlink to each of them, named by
the SHA-1 of its path (``addIndirectRoot`` in ``gc.cc``, likewise).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from nixery.closure import StorePath, encode_base32
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
        self._registered = state / "gcroots" / "auto"
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
            # It may have been deleted, as above; then Nix removes the registrations, which lead nowhere.
            with suppress(OSError):
                for link in place.iterdir():
                    with suppress(OSError):
                        self._registration(link).unlink()
            shutil.rmtree(place, ignore_errors=True)

    def protect(
        self, root: Path, find: Callable[[], Collection[StorePath] | None]
    ) -> Collection[StorePath] | None:
        """Find valid store paths and register roots for them, without a process of Nix. Blocks.

        No collection runs from the search to the registration.

        Args:
            root: of ``root``; the roots are beside it.
            find: returns the paths; ``None`` for none.

        Returns:
            What the search found; ``None`` if this process may not register roots, or a collection is running.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                paths = find()
                for number, path in enumerate(paths or ()):
                    self._register(root.with_name(f"protected-{number}"), path)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        return paths

    def _register(self, link: Path, path: StorePath) -> None:
        link.symlink_to(str(path))
        registration = self._registration(link)
        # No other process uses this name: the directory of the link is new, and belongs to this process.
        registration.symlink_to(link)

    def _registration(self, link: Path) -> Path:
        digest = hashlib.sha1(os.fsencode(link), usedforsecurity=False).digest()
        return self._registered / encode_base32(digest)


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
