"""Keeping Nix's garbage collector away from paths that are in use.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. Each server process
has a directory of its own for them and holds a lock on it for as long as it lives. The lock goes with the process
however that ends, so the next server can tell, and sweep, what a killed one has left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


class GarbageCollectorRoots:
    """This process's roots below a directory that servers may share.

    Args:
        directory: absolute; made if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        self._own = Path(tempfile.mkdtemp(prefix="server-", dir=directory))
        self._lock = _try_to_lock(self._own)

    @contextmanager
    def hold(self) -> Iterator[Path]:
        """Give a path to register roots at; they go when the context ends."""
        place = Path(tempfile.mkdtemp(prefix="build-", dir=self._own))
        try:
            yield place / "result"
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        """Remove everything this process has registered."""
        shutil.rmtree(self._own, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _sweep(directory: Path) -> None:
    for left_behind in directory.glob("server-*"):
        lock = _try_to_lock(left_behind)
        if lock is not None:
            shutil.rmtree(left_behind, ignore_errors=True)
            os.close(lock)


def _try_to_lock(directory: Path) -> int | None:
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
