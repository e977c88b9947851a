"""Having Nix's garbage collector wait for a moment.

The collector locks a file before it looks for roots, and whoever registers a temporary root takes the same lock, shared
(``LocalStore::collectGarbage`` and ``addTempRoot``, Nix's ``gc.cc``, since 2.0). Held, it bridges the time between two commands of ours,
of which the first ends with its protection and the second has none yet. It needs the rights of the store's owner: a client of
Nix's daemon does without.

Keeping Nix's garbage collector away from paths that are in use.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. Ours are in a directory of the
server process, so that what a killed one leaves is swept away by the next.

Nix's registration format: the one way to ask for path infos that every version from 2.0 on answers alike.

``nix path-info --json`` is marked experimental and has changed its shape three times. ``nix-store --dump-db`` prints,
for each path, lines with the path, its NAR hash, NAR size, deriver, the number of references, and each reference
(``makeValidityRegistration`` in Nix's ``store-api.cc``).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from nixery.closure import PathInfo, StorePath
from nixery.errors import StorageError, StorageFull

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


class GarbageCollectorRoots:
    """A place for roots.

    Args:
        directory: absolute, exists, and belongs to this process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def hold(self) -> Iterator[Path]:
        """Give a path to register roots at; they go when the context ends.

        Raises:
            StorageError: there is no place for them.
        """
        try:
            # Somebody may have deleted it, with all of the storage.
            self._directory.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="build-", dir=self._directory))
        except OSError as error:
            kind = StorageFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
            raise kind(f"cannot write to the storage: {error.strerror}") from error
        try:
            yield place / "result"
        finally:
            shutil.rmtree(place, ignore_errors=True)


def parse_registrations(text: str) -> Iterator[PathInfo]:
    """Read the output of ``nix-store --dump-db``.

    Raises:
        ValueError: it is not in that format.
    """
    lines = iter(text.splitlines())
    for line in lines:
        path = StorePath.parse(line)
        try:
            nar_hash, nar_size, _deriver, count = next(lines), int(next(lines)), next(lines), int(next(lines))
            references = {StorePath.parse(next(lines)) for _ in range(count)}
        except StopIteration:
            raise ValueError(f"the registration of {path} is cut off") from None
        yield PathInfo(path, nar_hash, nar_size, tuple(sorted(references - {path})))
