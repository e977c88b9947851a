"""Read the error messages of Nix: what they mean, and how to show them to clients."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from nixery.nix.machine import is_out_of_space
from nixery.plain_text import plain_text, shortened

# Characters of an explanation; most clients show it on one line. And of the text that it is made from.
_LONGEST = 2000
_LONGEST_TEXT = 8 * _LONGEST

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

# An absolute path, with or without `file:`; not a part of another URL, of a relative path or of `~/…`.
_PATH = re.compile(
    r"(?<!\w)file:/[^\s'\"]*|(?<![\w.~/:])/(?!nix/store/)[^\s'\"]+|(?<=:)/(?!/|nix/store/)[^\s'\"]+"
)

# A position, on a line of its own. Older versions write `(string)` for an expression of the command line,
# newer ones `«string»`.
_POSITION = re.compile(r"at (?P<file>\S.*?):(?P<line>[0-9]+):(?P<column>[0-9]+):?", re.ASCII)

_ATTRIBUTE = re.compile(r"… while evaluating the (attribute '[^']*')")
_SUGGESTION = "Did you mean "

# The tree of a flake, or of one of its inputs, in the Nix store.
_SOURCE = re.compile(r"/nix/store/[0-9a-z]{32}-[\w+.?=-]*source/")


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file.

    Attributes:
        file: as Nix writes it: an absolute path, or a word for an expression without a file.
        attribute: that Nix evaluated there, as ``attribute 'x'``; empty if Nix names none.
    """

    file: str
    line: int
    column: int
    attribute: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class NixMessage:
    """The last error on Nix's stderr. Every part may have been chosen by a package author.

    Attributes:
        text: its first paragraph, on one line; may be empty.
        details: the lines after it, up to the trace: the rest of a text that was thrown.
        positions: of the error and of its trace, the innermost first.
        suggestion: names that Nix found similar, as ``did you mean x?``; may be empty.
    """

    text: str
    details: tuple[str, ...] = ()
    positions: tuple[Position, ...] = ()
    suggestion: str = ""

    @classmethod
    def parse(cls, stderr: Iterable[str]) -> Self:
        """Parse lines of stderr; older versions of Nix print the trace after the error, newer ones before it."""
        lines = [plain_text(line).strip() for line in stderr]
        starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
        if not starts:
            return cls("")
        last = [lines[starts[-1]].removeprefix("error:").strip(), *lines[starts[-1] + 1 :]]
        begin = next((number for number, line in enumerate(last) if line), len(last))
        end = next(
            (number for number in range(begin, len(last)) if not last[number] or _ends_message(last[number])),
            len(last),
        )
        text, rest = last[begin:end], last[end:]
        details = rest[: next((i for i, line in enumerate(rest) if _ends_message(line)), len(rest))]
        suggestion = next((line for line in rest if line.startswith(_SUGGESTION)), "")
        return cls(
            shortened(" ".join(text), _LONGEST_TEXT),
            tuple(filter(None, details)),
            # A newer version prints the outermost first.
            (*_positions(rest), *reversed(_positions(lines[: starts[-1]]))),
            suggestion[:1].lower() + suggestion[1:],
        )

    def relative_to(self, root: str | None) -> str:
        """Describe the error to clients, on one line: with its position in the package set, without other paths.

        Args:
            root: the directory of the package set; ``None`` for a flake, whose trees are in the Nix store.
        """
        parts = [relative(self.text, root)]
        position = next((found for found in self.positions if _within(found.file, root) is not None), None)
        if position is not None and parts[0]:
            within = replace(position, file=_within(position.file, root) or "")
            parts.append(f", at {within}" + (f", {position.attribute}" if position.attribute else ""))
        if self.suggestion:
            parts.append(f"; {relative(self.suggestion, root)}")
        length = _LONGEST - sum(map(len, parts[1:]))
        return shortened("".join([shortened(parts[0], max(length, 1)), *parts[1:]]), _LONGEST)


def _ends_message(line: str) -> bool:
    return line.startswith(("… ", "at «none»", "(use '--show-trace'", "(stack trace truncated")) or (
        _POSITION.fullmatch(line) is not None
    )


def _positions(lines: Sequence[str]) -> list[Position]:
    found = []
    attribute = ""
    for line in lines:
        match = _POSITION.fullmatch(line)
        if match is not None:
            found.append(Position(match["file"], int(match["line"][:9]), int(match["column"][:9]), attribute))
            attribute = ""
        elif line.startswith("… "):
            named = _ATTRIBUTE.match(line)
            attribute = named[1] if named else ""
    return found


def _within(file: str, root: str | None) -> str | None:
    """Return the path of a file in the package set; ``None`` for another file."""
    if root is not None:
        return file.removeprefix(f"{root}/") if file.startswith(f"{root}/") else None
    source = _SOURCE.match(file)
    return file[source.end() :] if source else None


def last_error(stderr: str) -> str:
    """Return the last error that a command of Nix printed, on one line; without one, its last line.

    Hints about options may follow the error, before Nix 2.18.
    """
    lines = [line.strip() for line in stderr.strip().splitlines()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return next(filter(None, reversed(errors)), lines[-1] if lines else "")


def explanation(stderr: Iterable[str]) -> str:
    """Return the message of the last error on Nix's stderr, on one line and without positions; may be empty."""
    return shortened(NixMessage.parse(stderr).text, _LONGEST)


def without_hashes_of_files(line: str) -> str:
    """Remove hashes of this machine's files from a line of Nix."""
    return _HASH_OF_A_FILE.sub(r"\1 of this machine", line)


def relative(text: str, root: str | None) -> str:
    """Make paths of the package set relative, and remove other paths of this machine.

    Args:
        text: of Nix, or of a package author.
        root: as in ``NixMessage.relative_to``.
    """
    return without_paths(text.replace(f"{root}/", "") if root is not None else text)


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
