"""Read the error messages of Nix: what they mean, and how to show them to clients."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress

from nixery.nix.machine import is_out_of_space
from nixery.plain_text import plain_text, shortened

# Characters of an explanation; most clients show it on one line.
_LONGEST = 2000

# In versions of Nix before 2.20, a pure evaluation reads any file of this machine by its hash. So errors must
# not reveal one.
_HASH_OF_A_FILE = re.compile(r"(NAR hash mismatch in input) '(?:path:|file:|\w+\+file:|/).*")

# Messages of SQLite, the C library and Nix's store about the disk, the memory or the daemon.
_MACHINE = re.compile(
    r"SQLite database|opening lock file|No space left|Read-only file system|Permission denied|Too many open files|"
    r"Cannot allocate memory|cannot connect to|Connection refused|Input/output error|"
    r"cannot open database|database is (busy|locked)|Disk quota exceeded|disk I/O error|"
    r"database or disk is full",
    re.IGNORECASE,
)

# Messages of several versions of Nix about a store path that existed a moment ago.
_MISSING_PATH = re.compile(
    r"missing derivation|don't know how to build|is not valid|does not exist|No such file", re.IGNORECASE
)
_STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[\w+.?=-]+")

_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|caused by lack of free disk space",
    re.IGNORECASE,
)

# SQLite's whole message when it cannot extend the memory that users of a database share.
_SHARED_MEMORY_ERROR = "disk I/O error"

_PATH = re.compile(r"(?<![\w.])/(?!nix/store/)[^\s'\"]+")


def explanation(stderr: Sequence[str]) -> str:
    """Return the message of the last error on Nix's stderr, on one line and without positions; may be empty.

    Newer versions print a trace first, and the original error last.
    """
    lines = [plain_text(line).strip() for line in stderr]
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    message: list[str] = []
    for line in lines[starts[-1] :] if starts else []:
        text = line.removeprefix("error:").strip()
        if message and (
            not text or text.startswith(("at ", "(use '--show-trace'", "(stack trace truncated"))
        ):
            break
        if text:
            message.append(text)
    return shortened(" ".join(message), _LONGEST)


def without_hashes_of_files(line: str) -> str:
    """Remove hashes of this machine's files from a line of Nix."""
    return _HASH_OF_A_FILE.sub(r"\1 of this machine", line)


def without_paths(message: str) -> str:
    """Remove paths of this machine; store paths are the same everywhere and stay."""
    return _PATH.sub("…", message)


def reports_missing_path(stderr: Sequence[str]) -> bool:
    """Whether Nix misses a store path, or a file."""
    return _MISSING_PATH.search("\n".join(plain_text(line) for line in stderr)) is not None


def collected_path(stderr: Sequence[str]) -> str | None:
    """Return the missing store path that caused an error, most likely deleted by the garbage collector.

    A file that is missing within an existing path is an error of the package set.
    """
    if not reports_missing_path(stderr):
        return None
    text = "\n".join(plain_text(line) for line in stderr)
    return next((path for path in _STORE_PATH.findall(text) if not os.path.lexists(path)), None)


def reports_full_disk(message: str) -> bool:
    """Whether Nix reports a full disk, or an error that a full disk may cause while the disk is full."""
    if _FULL.search(message) is not None:
        return True
    with suppress(OSError):
        return _SHARED_MEMORY_ERROR in message and is_out_of_space()
    return False


def reports_machine_error(stderr: Sequence[str]) -> bool:
    """Whether an evaluation failed because of this machine rather than an expression."""
    return _MACHINE.search(explanation(stderr)) is not None
