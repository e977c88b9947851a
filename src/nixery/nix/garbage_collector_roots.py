"""Keeping Nix's garbage collector away from paths that are in use.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. Ours are in a directory of the
server process, so that what a killed one leaves is swept away by the next.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixery.errors import StorageError, StorageFull


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
