"""Keeping Nix's garbage collector away from paths that are in use.

Nix keeps every path that an indirect root leads to: a symlink anywhere, which Nix registers. Ours are in a directory of the
server process, so that what a killed one leaves is swept away by the next.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class GarbageCollectorRoots:
    """A place for roots.

    Args:
        directory: absolute, exists, and belongs to this process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def hold(self) -> Iterator[Path]:
        """Give a path to register roots at; they go when the context ends."""
        place = Path(tempfile.mkdtemp(prefix="build-", dir=self._directory))
        try:
            yield place / "result"
        finally:
            shutil.rmtree(place, ignore_errors=True)
