"""The platform that Nix builds for by itself."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping

from nixery.image.platform import AMD64, ARM64, SUPPORTED, Platform

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
