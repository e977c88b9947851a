"""Nix's error messages, made short enough for a client's terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress

from nixery.nix.machine import is_out_of_room
from nixery.plain_text import plain_text, shortened

# Characters of an explanation; most clients show it in one line.
_LONGEST = 2000

# In versions of Nix before 2.20, a pure evaluation reads any file of this machine by its hash. So errors must
# not reveal one.
_HASH_OF_A_FILE = re.compile(r"(NAR hash mismatch in input) '(?:path:|file:|\w+\+file:|/).*")


def without_hashes_of_files(line: str) -> str:
    """Remove hashes of this machine's files from a line of Nix."""
    return _HASH_OF_A_FILE.sub(r"\1 of this machine", line)


def explanation(stderr: Sequence[str]) -> str:
    """Return the message of the last error on Nix's stderr, in one line and without positions; may be empty.

    Newer versions print a trace first and the error that started it all last.
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


# What SQLite, the C library and Nix's store say when a disk, the memory or the daemon is at fault.
_MACHINE = re.compile(
    r"SQLite database|opening lock file|No space left|Read-only file system|Permission denied|Too many open files|"
    r"Cannot allocate memory|cannot connect to|Connection refused|Input/output error|"
    r"cannot open database|database is (busy|locked)|Disk quota exceeded|disk I/O error|"
    r"database or disk is full",
    re.IGNORECASE,
)

# What the versions of Nix say of a store path that was there a moment ago.
_GONE = re.compile(
    r"missing derivation|don't know how to build|is not valid|does not exist|No such file", re.IGNORECASE
)
_STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[\w+.?=-]+")


def is_about_something_gone(said: Sequence[str]) -> bool:
    """Whether Nix misses a store path, or a file."""
    return _GONE.search("\n".join(plain_text(line) for line in said)) is not None


def collected_path(said: Sequence[str]) -> str | None:
    """Return the store path because of which something failed, if it is one that is not there: the garbage collector's, most likely.

    A file that is missing within a path that is there is somebody else's fault.
    """
    if not is_about_something_gone(said):
        return None
    text = "\n".join(plain_text(line) for line in said)
    return next((path for path in _STORE_PATH.findall(text) if not os.path.lexists(path)), None)


_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|caused by lack of free disk space",
    re.IGNORECASE,
)

# All that SQLite says if there is no room for the memory that the users of a database share.
_PERHAPS_FULL = "disk I/O error"


def is_about_a_full_disk(message: str) -> bool:
    """Whether a message of Nix's says that there is no room left, or says too little while there is none."""
    if _FULL.search(message) is not None:
        return True
    with suppress(OSError):
        return _PERHAPS_FULL in message and is_out_of_room()
    return False


_PATH = re.compile(r"(?<![\w.])/(?!nix/store/)[^\s'\"]+")


def is_trouble_of_the_machine(stderr: Sequence[str]) -> bool:
    """Whether an evaluation failed for a reason that lies in no expression."""
    return _MACHINE.search(explanation(stderr)) is not None


def without_paths(message: str) -> str:
    """Leave out where things are on this machine; store paths are the same everywhere and stay."""
    return _PATH.sub("…", message)
