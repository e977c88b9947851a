"""Whether Nix could build something just now, as far as that can be told without building.

The platform that Nix builds for by itself.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from nixery.closure import STORE_DIRECTORY
from nixery.errors import NixStoreFull, NixUnusable
from nixery.image.platform import AMD64, ARM64, SUPPORTED, Platform

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


# Seconds.
_PATIENCE = 5

_MACHINES = {"x86_64": AMD64, "amd64": AMD64, "aarch64": ARM64, "arm64": ARM64}


def native_platform(environment: Mapping[str, str]) -> Platform:
    """Ask Nix, whose configuration decides; without a valid answer, use the machine's own platform.

    Blocks for some hundredths of a second.

    Args:
        environment: of the command that asks.
    """
    command = ("nix-instantiate", "--eval", "--expr", "builtins.currentSystem")
    try:
        completed = subprocess.run(
            command, capture_output=True, timeout=_PATIENCE, check=False, text=True, env=environment
        )
        answer = completed.stdout.strip().strip('"')
    except (OSError, subprocess.TimeoutExpired):
        # A Nix that cannot be used is told to whoever asks for an image; here it is none of our business.
        answer = ""
    found = next((known for known in SUPPORTED if known.nix_system == answer), None)
    return found or _MACHINES.get(platform.machine(), AMD64)
