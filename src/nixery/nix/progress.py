"""What Nix tells while it realises, in portions that people can follow and that cost little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

# Seconds between two portions. A builder may write a hundred thousand lines a second.
_PAUSE = 0.1

# Lines of a portion; what is written besides is counted.
_LINES = 100


@dataclass(frozen=True, slots=True)
class Fetching:
    """Store paths are fetched from a binary cache.

    Attributes:
        done: bytes that have arrived (NAR size).
        expected: bytes of everything that is known to be fetched.
    """

    done: int
    expected: int


@dataclass(frozen=True, slots=True)
class Building:
    """Builders run.

    Attributes:
        derivations: ``<hash>-<name>.drv`` of those that run now, in the order in which they began.
        done: how many have ended.
    """

    derivations: tuple[str, ...]
    done: int


@dataclass(frozen=True, slots=True)
class LogLines:
    """Builders have written something.

    Attributes:
        lines: derivation and text; the derivation is empty where nobody knows.
        dropped: how many lines were written besides these, too fast for anybody to read.
    """

    lines: tuple[tuple[str, str], ...]
    dropped: int = 0


NixProgress = Fetching | Building | LogLines
Tell = Callable[[NixProgress], None]


def nobody(progress: NixProgress, /) -> None:
    """Tell nobody."""


class ProgressFeed:
    """Collects what happens, and tells it a few times a second. Works on the event loop, and never has it wait.

    Args:
        tell: is told.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._lines: list[tuple[str, str]] = []
        self._dropped = 0
        self._running: dict[int, str] = {}
        self._built = 0
        self._fetched: dict[int, tuple[int, int]] = {}
        self._changed: set[type[Fetching | Building]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def line(self, derivation: str, text: str) -> None:
        """A builder has written a line."""
        if len(self._lines) < _LINES:
            self._lines.append((derivation, text))
        else:
            self._dropped += 1
        self._soon()

    def started(self, activity: int, derivation: str) -> None:
        """A builder has begun."""
        self._running[activity] = derivation
        self._changed.add(Building)
        self._soon()

    def stopped(self, activity: int) -> None:
        """An activity is over."""
        if self._running.pop(activity, None) is not None:
            self._built += 1
            self._changed.add(Building)
            self._soon()

    def fetched(self, activity: int, done: int, expected: int) -> None:
        """A path has arrived up to a number of bytes."""
        self._fetched[activity] = (done, expected)
        self._changed.add(Fetching)
        self._soon()

    def flush(self) -> None:
        """Tell now what has not been told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if Fetching in self._changed:
            done, expected = (sum(column) for column in zip(*self._fetched.values(), strict=True))
            self._tell(Fetching(done, expected))
        if Building in self._changed:
            self._tell(Building(tuple(self._running.values()), self._built))
        if self._lines:
            self._tell(LogLines(tuple(self._lines), self._dropped))
        self._changed.clear()
        self._lines, self._dropped = [], 0

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE, self.flush)
