"""Ends what a server has started if the server itself was killed. A program, which needs nothing but Python.

A server that is killed (``kill -9``, no memory left) can end nothing any more, and its Nix runs in sessions of its own. So each server
starts this program in one more session, with a pipe as its standard input. Nothing is ever written there; when the server is gone,
however that came, the pipe ends. Then whatever has the server's mark in its environment is asked to end, with all that it has
started, and ended a few seconds later if it has not.

A process that the server was about to start when it was killed holds the pipe open until it has its mark, so none is missed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

# Seconds that Nix has to end its builders.
_GRACE = 4.0
_LOOK_AGAIN = 0.05


def marked(mark: bytes) -> set[int]:
    """Processes with a mark in their environment, but for this one."""
    found = set()
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- this has to be quick
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
            if mark in file.read().split(b"\0"):
                found.add(int(entry))
    return found


def processes() -> dict[int, tuple[int, bytes]]:
    """All processes: parent, and when it was started, which tells it from another one of the same number."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                # The program's name, in parentheses, may hold anything.
                fields = file.read().rpartition(b")")[2].split()
                found[int(entry)] = (int(fields[1]), fields[19])
    return found


def descendants(ancestors: set[int]) -> dict[int, bytes]:
    """What some processes have started, and when: builders have an environment of their own."""
    known = processes()
    found: set[int] = set()
    generation = ancestors
    while generation:
        generation = {number for number, (parent, _) in known.items() if parent in generation} - found
        found |= generation
    return {number: known[number][1] for number in found}


def end(mark: bytes) -> None:
    """End everything that has a mark, and what it has started."""
    asked: set[int] = set()
    started: dict[int, bytes] = {}
    until = time.monotonic() + _GRACE
    while (found := marked(mark)) and time.monotonic() < until:
        started.update(descendants(found))
        for process in found - asked:
            _signal(process, signal.SIGTERM)
        asked |= found
        time.sleep(_LOOK_AGAIN)
    # Nix has ended its builders, or it is late. Of both, whatever is left goes.
    now = processes()
    left = {number for number, when in started.items() if number in now and now[number][1] == when}
    for process in found | left:
        _signal(process, signal.SIGKILL)


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def main() -> None:
    """Wait for the end of standard input, then end what has the mark that is the only argument."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end(os.fsencode(sys.argv[1]))


if __name__ == "__main__":
    main()
