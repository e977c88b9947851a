"""Telling what is in an image from what is only on the machine that builds it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from nixery.closure.store_path import STORE_DIRECTORY, StorePath

_DEPTH = STORE_DIRECTORY.count("/") + 2


class Inside:
    """The store paths of an image. Symlinks may lead anywhere on this machine; only what is in here is in the image."""

    def __init__(self, closure: Iterable[StorePath]) -> None:
        self._paths = {str(path) for path in closure}

    def exists(self, file: bytes) -> bool:
        """Whether a path leads, through whatever symlinks, to something in the image."""
        # One call tells of most that are asked for that they are not there; resolving takes one for each component.
        return os.path.exists(file) and self._leads_inside(file)

    def is_directory(self, file: bytes) -> bool:
        """Likewise, and to a directory."""
        return os.path.isdir(file) and self._leads_inside(file)

    def _leads_inside(self, file: bytes) -> bool:
        real = os.fsdecode(os.path.realpath(file))
        return "/".join(real.split("/")[:_DEPTH]) in self._paths
