"""Having Nix's garbage collector wait for a moment.

The collector locks a file before it looks for roots, and whoever registers a temporary root takes the same lock, shared
(``LocalStore::collectGarbage`` and ``addTempRoot``, Nix's ``gc.cc``, since 2.0). Held, it bridges the time between two commands of ours,
of which the first ends with its protection and the second has none yet. It needs the rights of the store's owner: a client of
Nix's daemon does without.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

# Seconds for which a collection that goes on is waited for. What is written during one is safe from it.
_PATIENCE = 10.0
_LOOK_AGAIN = 0.02


class CollectorLock:
    """The lock of one store.

    Args:
        state: Nix's state directory.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / "gc.lock"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Callable[[], None]]:
        """Keep collections from beginning while the context lasts, if that is possible.

        Yields:
            What ends it early. The collector is not to wait for a build.
        """
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield _nothing
            return
        try:
            await _lock(descriptor)
            yield lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def is_at_work(self) -> bool:
        """Whether a collector holds the lock, as far as can be seen."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
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


async def _lock(descriptor: int) -> None:
    end = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            if asyncio.get_running_loop().time() > end:
                return
            await asyncio.sleep(_LOOK_AGAIN)
        else:
            return


def _nothing() -> None:
    """There is nothing to end."""
