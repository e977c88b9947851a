"""Warden: a program that ends the child processes of a killed server. Uses the standard library only.

A killed server (``kill -9``, out of memory) cannot end its children, and its Nix processes run in separate
sessions. So each server starts this program in its own session, with a pipe as its standard input that
carries no data. When the server ends, for any reason, the pipe closes. Then the warden sends SIGTERM to every
process with the server's mark in its environment, and a few seconds later SIGKILL to those that are left and
to all of their descendants.

A process that the server was about to start holds the pipe open until it has its mark, so none is missed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

# Seconds: for Nix to end its builders, and between two scans of all processes.
_GRACE = 4.0
_POLL = 0.05


def marked(mark: bytes) -> set[int]:
    """Return the processes with a mark in their environment, except this one."""
    found = set()
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- pathlib is slower
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
            if mark in file.read().split(b"\0"):
                found.add(int(entry))
    return found


def processes() -> dict[int, tuple[int, bytes]]:
    """Return the parent of each process, and its start time, which distinguishes it from later ones with its number."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                # The program's name, in parentheses, may contain anything.
                fields = file.read().rpartition(b")")[2].split()
                found[int(entry)] = (int(fields[1]), fields[19])
    return found


def descendants(ancestors: set[int]) -> dict[int, bytes]:
    """Return the descendants of processes, and their start times; builders have an environment without the mark."""
    known = processes()
    found: set[int] = set()
    generation = ancestors
    while generation:
        generation = {number for number, (parent, _) in known.items() if parent in generation} - found
        found |= generation
    return {number: known[number][1] for number in found}


def end(mark: bytes) -> None:
    """End all processes with a mark, and their descendants."""
    asked: set[int] = set()
    started: dict[int, bytes] = {}
    until = time.monotonic() + _GRACE
    while (found := marked(mark)) and time.monotonic() < until:
        started.update(descendants(found))
        for process in found - asked:
            _signal(process, signal.SIGTERM)
        asked |= found
        time.sleep(_POLL)
    # By now Nix should have ended its builders. Kill what is left of both.
    now = processes()
    left = {number for number, when in started.items() if number in now and now[number][1] == when}
    for process in found | left:
        _signal(process, signal.SIGKILL)


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def main() -> None:
    """Wait for the end of standard input, then end the processes with the mark in the only argument."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end(os.fsencode(sys.argv[1]))


if __name__ == "__main__":
    main()
