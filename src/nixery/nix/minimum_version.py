"""The oldest Nix that a package set accepts, compared with the Nix of this machine.

nixpkgs declares it in ``lib/minver.nix``, a string, and in newer states in ``lib/minfeatures.nix``, an
expression that compares versions. An older Nix ends an evaluation of nixpkgs with an abort, or with an error about a
missing builtin, neither of which says what the operator can do.

Anyone who can write to a package source can write these files. They are read as data, within bounds, and are
never evaluated here.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from nixery.caching import LRUCache
from nixery.files import READ, Beneath, read_descriptor
from nixery.nix.machine import release
from nixery.nix.packages import Flake, NixFiles, PackageSet

# Bytes of a file that are read; those of nixpkgs have 75 and 640.
_LARGEST = 4096

# At most four digits a number, so that a made-up version stays short.
_NUMBERS = r'"(\d{1,4}(?:\.\d{1,4}){1,2})"'

# The files of a package set, with what precedes and follows the version in each.
_FILES = (
    (b"lib/minver.nix", re.compile(rf"(?:\s|#[^\n]*\n)*{_NUMBERS}\s*", re.ASCII)),
    (
        b"lib/minfeatures.nix",
        re.compile(rf".*?\bcompareVersions\s+{_NUMBERS}\s+builtins\.nixVersion\b.*", re.ASCII | re.DOTALL),
    ),
)

# Bytes of the names of package sets that were reported.
_CAPACITY = 64 * 1024

_ADVICE = "docs/how-to/serve-nixpkgs.md says how to get a newer one"

_log = structlog.get_logger("nixery.nix")


@dataclass(frozen=True, slots=True)
class OutdatedNix:
    """A Nix that is older than a package set accepts.

    Attributes:
        required: the oldest version that the set accepts.
        found: the version of this machine.
    """

    required: str
    found: str

    def __str__(self) -> str:
        return f"it needs Nix {self.required} or newer, and this machine has Nix {self.found}; {_ADVICE}"


class MinimumVersions:
    """Compares package sets with the Nix of this machine, and logs each set that needs a newer one once.

    Args:
        environment: of Nix.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._reported: LRUCache[str, str] = LRUCache(_CAPACITY)
        self._found: str | None = None

    async def outdated(self, package_set: PackageSet) -> OutdatedNix | None:
        """Return the two versions if this machine's Nix is older than a package set accepts.

        Starts a process only for the first set that declares a version. ``None`` also for a set without a
        declaration, and for a Nix without a version.
        """
        required = await asyncio.to_thread(required_version, package_set)
        if required is None:
            return None
        if self._found is None:
            # Evaluations run in this program, also with a daemon of another version.
            found = await asyncio.to_thread(release, "nix-instantiate", self._environment)
            self._found = found.version if found else ""
        if not self._found or _numbers(self._found) >= _numbers(required):
            return None
        outdated = OutdatedNix(required, self._found)
        name = str(package_set)
        if self._reported.get(name) is None:
            self._reported.put(name, required, len(name))
            _log.warning(
                "Nix is too old for the package set", required=required, found=self._found, advice=_ADVICE
            )
        return outdated


def required_version(package_set: PackageSet) -> str | None:
    """Return the oldest version of Nix that a package set says it accepts; ``None`` if it says nothing.

    Blocks. Follows no symlink below the set.
    """
    directory = _directory(package_set)
    if directory is None:
        return None
    try:
        with Beneath(os.fsencode(directory)) as beneath:
            for name, pattern in _FILES:
                found = pattern.fullmatch(_read(beneath, name))
                if found is not None:
                    return found[1]
    except OSError:
        return None  # a single file, or out of reach, which the evaluation reports
    return None


def _directory(package_set: PackageSet) -> Path | None:
    match package_set:
        case NixFiles(path):
            return path
        case Flake(tree=tree):
            return tree


def _read(beneath: Beneath, name: bytes) -> str:
    try:
        descriptor = beneath.open(name, READ)
    except OSError:
        return ""
    try:
        # One byte more than the limit: a longer file is none of nixpkgs', and half of it proves nothing.
        content = read_descriptor(descriptor, _LARGEST + 1)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return content.decode(errors="replace") if len(content) <= _LARGEST else ""


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in version.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))
