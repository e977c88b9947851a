"""The few contents of packages that root file systems are planned from.

A listing keeps them, so that the root file system of an image is planned without its packages. A content that is
missing here is read from the store path again, so this is no list of permitted files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# Whole files, by their directory: accounts, certificates, what system it is.
_NAMES = {
    b"etc/": frozenset({b"passwd", b"group", b"os-release"}),
    b"etc/ssl/certs/": frozenset({b"ca-bundle.crt", b"ca-certificates.crt"}),
    b"lib/": frozenset({b"os-release"}),
    b"nix-support/": frozenset({b"dpkg-status"}),
}
_LARGEST = 1 << 20

_DECLARATIONS = frozenset({b"lib/sysusers.d/", b"lib/tmpfiles.d/"})

# Libraries, whose headers name the platform, and the loader, which may be copied. Links to libraries may lead to any
# directory below lib.
_LIBRARIES = re.compile(rb"lib/(?:[a-z0-9_]+-linux-gnu/)?")
_HEADER = 20

# Programs beside files of other packages, which may be copied. The larger ones are rarely needed.
_SHARED = re.compile(rb"(?:lib|share)/.+")
_LARGEST_PROGRAM = 1 << 18

# The directory of a store path that is a file itself.
STORE_ITSELF = b"/"

# Room in a listing that programs leave to the other contents: a package may have hundreds of programs.
_RESERVE = 1 << 19


class Rule(NamedTuple):
    """A rule for the files of a directory.

    Attributes:
        wanted: returns how many bytes of a file to keep, by its name, its size, and whether it is executable.
        reserve: bytes of the room in a listing that have to be left.
    """

    wanted: Callable[[bytes, int, bool], int]
    reserve: int = 0


def kept_in(directory: bytes) -> Rule | None:
    """Return the rule for the files of a directory.

    Args:
        directory: below a store path, with a slash at its end; empty for the store path itself; ``STORE_ITSELF`` for
            the directory of a store path that is a file.

    Returns:
        ``None`` if nothing of the directory is kept.
    """
    directory = directory.removeprefix(b"usr/")
    if directory == STORE_ITSELF:
        return Rule(_single)
    if directory in _DECLARATIONS:
        return Rule(_declaration)
    names = _NAMES.get(directory, frozenset())
    if _LIBRARIES.fullmatch(directory):
        return Rule(
            lambda name, size, _: size if name in names and size <= _LARGEST else _of_library(name, size)
        )
    if names:
        return Rule(lambda name, size, _: size if name in names and size <= _LARGEST else 0)
    return Rule(_program, _RESERVE) if _SHARED.fullmatch(directory) else None


def _single(_: bytes, size: int, __: bool) -> int:  # noqa: FBT001
    return size if size <= _LARGEST_PROGRAM else 0


def _declaration(name: bytes, size: int, _: bool) -> int:  # noqa: FBT001
    return size if name.endswith(b".conf") and size <= _LARGEST else 0


def _of_library(name: bytes, size: int) -> int:
    if name.startswith(b"ld-linux") and size <= _LARGEST:
        return size
    return _HEADER if b".so" in name else 0


def _program(name: bytes, size: int, executable: bool) -> int:  # noqa: FBT001
    if b".so" in name:
        return _HEADER
    return size if executable and size <= _LARGEST_PROGRAM else 0
