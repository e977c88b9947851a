"""How a program is started, and what a program that started looks like."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COMMANDS = Path(__file__).with_name("commands.toml")


@dataclass(frozen=True, slots=True)
class Command:
    """One way to start a program.

    Attributes:
        arguments: of the program.
        statuses: exit statuses of a program that started.
        prints: a regular expression that the output must match.
        ignores: a regular expression of messages about optional files, which no package of Debian has.
    """

    arguments: tuple[str, ...]
    statuses: frozenset[int] = frozenset({0})
    prints: str = ""
    ignores: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """How a process ended.

    Attributes:
        status: exit status, or None if the time limit passed.
        output: the beginning of both streams.
    """

    status: int | None
    output: str


# Tried in this order.
_USUAL = (Command(("--version",)), Command(("--help",)))

# Messages of loaders, interpreters and shells that miss a part of a program, whatever the exit status is.
_FAULTS = re.compile(
    r"""error\ while\ loading\ shared\ libraries | cannot\ open\ shared\ object
    | symbol\ lookup\ error | undefined\ symbol | version\ `\S+'\ not\ found
    | Traceback\ \(most\ recent\ call\ last\) | ModuleNotFoundError | ImportError
    | ^Can't\ locate\ \S+ | BEGIN\ failed | Can't\ load\ '\S+'\ for\ module
    | cannot\ load\ such\ file | \(LoadError\)
    | Cannot\ find\ (module|package) | MODULE_NOT_FOUND
    | Could\ not\ find\ or\ load\ main\ class | ClassNotFoundException | NoClassDefFoundError
    | Unable\ to\ access\ jarfile
    | can't\ find\ package
    | bad\ interpreter | :\ (command\ )?not\ found$ | :\ No\ such\ file\ or\ directory
    | Failed\ opening\ required | PHP\ (Fatal|Warning|Parse)
    | [Ss]etting\ locale\ failed | cannot\ (set|change)\ locale
    | Segmentation\ fault | core\ dumped
    """,
    re.VERBOSE | re.MULTILINE,
)

# Of a shell or a container runtime: the program cannot be executed, or is not there.
_NOT_EXECUTED = (126, 127)
# Of a shell or a container runtime: this and the number of the signal that ended the program.
_SIGNALLED = 128


def commands_for(package: str) -> Sequence[Command]:
    """Return the ways to start the main program of a package; one of them has to work."""
    line = _table().get(package)
    return _USUAL if line is None else (line,)


def fault(command: Command, run: Run) -> str | None:
    """Return why a run shows that the program did not start, or None if it did."""
    if run.status is None:
        return "it ran until the time limit"
    output = re.sub(command.ignores, "", run.output) if command.ignores else run.output
    found = _FAULTS.search(output)
    if found is not None:
        return _line_at(output, found.start())
    if run.status not in command.statuses:
        return f"exit status {run.status}: {_first_line(run.output)}"
    if not re.search(command.prints, run.output):
        return f"unexpected output: {_first_line(run.output)}"
    return None


def is_decisive(run: Run) -> bool:
    """Tell whether a failed run makes other commands pointless: the program is missing, or a part of it."""
    if run.status is None:
        return False
    return run.status in _NOT_EXECUTED or run.status > _SIGNALLED or _FAULTS.search(run.output) is not None


def _line_at(text: str, position: int) -> str:
    begin = text.rfind("\n", 0, position) + 1
    line = text[begin:].partition("\n")[0].strip()
    if line.startswith("Traceback"):
        lines = [line for line in text[begin:].splitlines() if line.strip()]
        # The exception is the first line after the frames, which are indented.
        line = next((line for line in lines[1:] if not line.startswith(" ")), line)
    return line[:_LINE]


# Characters.
_LINE = 300


def _first_line(text: str) -> str:
    return next((line.strip()[:_LINE] for line in text.splitlines() if line.strip()), "no output")


@cache
def _table() -> Mapping[str, Command]:
    lines: dict[str, dict[str, Any]] = tomllib.loads(COMMANDS.read_text())
    return {
        package: Command(
            tuple(line["arguments"]),
            frozenset(line.get("statuses", (0,))),
            line.get("prints", ""),
            line.get("ignores", ""),
        )
        for package, line in lines.items()
    }
