"""Whether Nix could build something just now, as far as that can be told without building."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nixery.closure.store_path import STORE_DIRECTORY
from nixery.errors import NixStoreFull, NixUnusable

# Bytes and files without which nothing worth mentioning is built.
_LEAST_BYTES = 16 * 1024 * 1024
_LEAST_FILES = 100


def require_usable_nix(store: Path = Path(STORE_DIRECTORY)) -> None:
    """Look for Nix, and for room in its store.

    Raises:
        NixUnusable: Nix is not on ``PATH``, or its store cannot be looked at.
        NixStoreFull: there is next to no room.
    """
    if shutil.which("nix-store") is None:
        raise NixUnusable("nix-store is not on PATH")
    try:
        full = is_out_of_room(store)
    except OSError as error:
        raise NixUnusable(f"the Nix store cannot be looked at: {error.strerror}") from error
    if full:
        raise NixStoreFull


def is_out_of_room(store: Path = Path(STORE_DIRECTORY)) -> bool:
    """Whether there is next to no room in the Nix store.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.statvfs(store)
    # Some file systems have no fixed number of files, and say 0.
    out_of_files = status.f_files and status.f_favail < _LEAST_FILES
    return bool(status.f_bavail * status.f_frsize < _LEAST_BYTES or out_of_files)


def owns_store(store: Path = Path(STORE_DIRECTORY)) -> bool:
    """Whether Nix writes to the store as this user: then our options apply, and no daemon ignores them."""
    try:
        return store.stat().st_uid == os.geteuid()
    except OSError:
        return False
