"""Read Nix's ``internal-json`` log while it builds, and report progress at a pace that people can follow.

Source: ``logging.cc`` and ``logging.hh`` of Nix; the numbers have been the same since 2.0. Each line is
``@nix`` and a JSON object: *start* and *stop* of an activity, a *result* within one, or a *msg*.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from nixery.nix.error_message import reports_full_disk
from nixery.plain_text import plain_text, shortened

# Seconds between two reports, and builders' lines in one; a builder may write a hundred thousand lines a
# second.
_INTERVAL = 0.1
_LINES = 100

_PREFIX = b"@nix "
_COPY_ACTIVITY = 100  # of a path, from a binary cache
_COPIES_ACTIVITY, _BUILDS_ACTIVITY = 103, 104  # all copies, all builders: they count the others
_BUILD_ACTIVITY = 105
_SUBSTITUTE_ACTIVITY = 108
_PROGRESS_RESULT = 105  # bytes done, bytes expected, ...; of the activities that count: numbers of paths
_EXPECTED_RESULT = 106  # kind of activity, bytes that all of that kind will have
_COUNTERS = (_COPIES_ACTIVITY, _BUILDS_ACTIVITY)
_WORK = (_COPY_ACTIVITY, _BUILD_ACTIVITY, _SUBSTITUTE_ACTIVITY)
_LOG_LINE_RESULTS = (101, 107)  # a builder's line, a post-build hook's line
_LEVEL_ERROR = 0

# Begins what Nix says of a builder that failed. The message of the error names the derivation already.
_BUILDER = re.compile(r"^builder for '[^']*' failed")

# All that Nix says of a builder that failed by itself.
_ENDED = re.compile(r"builder failed (?:with exit code|due to signal)")

_DERIVATION = re.compile(r"/nix/store/([0-9a-z]{32}-[^\s'!^]+?\.drv)")

# Lines that a log tail has.
LOG_TAIL = 20

# A builder may write a megabyte without a line break. Limits of characters: shown of a line, and
# read to remove its escape sequences.
_LONGEST_LINE, _LONGEST_RAW = 2000, 16_000

# Derivations whose last lines are kept, and errors of Nix; beyond that, the latest derivations and the first
# errors.
_MOST_TAILS, _MOST_ERRORS = 500, 50


@dataclass(frozen=True, slots=True)
class Fetching:
    """Nix is fetching store paths from a binary cache.

    Attributes:
        done: bytes received (NAR size).
        expected: bytes to receive, as far as known.
        paths: store paths received.
        expected_paths: store paths to receive, as far as known; 0 if Nix has not said it.
    """

    done: int
    expected: int
    paths: int = 0
    expected_paths: int = 0


@dataclass(frozen=True, slots=True)
class Building:
    """Builders are running.

    Attributes:
        derivations: ``<hash>-<name>.drv`` of the running ones, in the order of their start.
        done: number of those that have ended.
        expected: number of derivations to build, as far as known; 0 if Nix has not said it.
    """

    derivations: tuple[str, ...]
    done: int
    expected: int = 0


@dataclass(frozen=True, slots=True)
class LogLines:
    """Builders have written lines.

    Attributes:
        lines: derivation and text; the derivation is empty if unknown.
        dropped: number of further lines, written too fast to be read.
    """

    lines: tuple[tuple[str, str], ...]
    dropped: int = 0


NixProgress = Fetching | Building | LogLines
ProgressCallback = Callable[[NixProgress], None]


def ignore_progress(progress: NixProgress, /) -> None:
    """Discard it."""


class ProgressFeed:
    """Collects progress and reports it a few times a second. Runs on the event loop and never blocks it.

    Args:
        report: receives the progress.
    """

    def __init__(self, report: ProgressCallback) -> None:
        self._report = report
        self._lines: list[tuple[str, str]] = []
        self._dropped = 0
        self._running: dict[int, str] = {}
        self._built = 0
        self._fetched: dict[int, tuple[int, int]] = {}
        # What Nix announces: bytes of all paths; by the activity that counts, numbers done and expected.
        self._to_fetch = 0
        self._counted: dict[int, tuple[int, int]] = {_COPIES_ACTIVITY: (0, 0), _BUILDS_ACTIVITY: (0, 0)}
        self._changed: set[type[Fetching | Building]] = set()
        self._last: dict[type[Fetching | Building], Fetching | Building] = {
            Fetching: Fetching(0, 0),
            Building: Building((), 0),
        }
        self._timer: asyncio.TimerHandle | None = None

    def line(self, derivation: str, text: str) -> None:
        """Record a line of a builder."""
        if len(self._lines) < _LINES:
            self._lines.append((derivation, text))
        else:
            self._dropped += 1
        self._schedule()

    def started(self, activity: int, derivation: str) -> None:
        """Record the start of a builder."""
        self._running[activity] = derivation
        self._changed.add(Building)
        self._schedule()

    def stopped(self, activity: int) -> None:
        """Record the end of an activity."""
        if self._running.pop(activity, None) is not None:
            self._built += 1
            self._changed.add(Building)
            self._schedule()

    def fetched(self, activity: int, done: int, expected: int) -> None:
        """Record the bytes received of a path."""
        self._fetched[activity] = (done, expected)
        self._changed.add(Fetching)
        self._schedule()

    def announced(self, size: int) -> None:
        """Record the bytes of all paths that Nix fetches."""
        if size > self._to_fetch:
            self._to_fetch = size
            self._changed.add(Fetching)
            self._schedule()

    def counted(self, kind: int, done: int, expected: int) -> None:
        """Record how many paths or builders there are in all, by the kind of the activity that counts them."""
        if self._counted[kind] != (done, expected):  # a path that no cache has is expected for a moment
            self._counted[kind] = done, expected
            self._changed.add(Fetching if kind == _COPIES_ACTIVITY else Building)
            self._schedule()

    def flush(self) -> None:
        """Report everything that is pending, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if Fetching in self._changed:
            done = sum(done for done, _ in self._fetched.values())
            expected = sum(expected for _, expected in self._fetched.values())
            expected = max(expected, self._to_fetch)
            paths, expected_paths = self._counted[_COPIES_ACTIVITY]
            # Nix does not report the last bytes of a path.
            done = expected if 0 < expected_paths == paths else done
            self._report_new(Fetching(done, expected, paths, expected_paths))
        if Building in self._changed:
            built, to_build = self._counted[_BUILDS_ACTIVITY]
            # Without Nix's own count, builders that failed count, too.
            self._report_new(
                Building(tuple(self._running.values()), built if to_build else self._built, to_build)
            )
        if self._lines:
            self._report(LogLines(tuple(self._lines), self._dropped))
        self._changed.clear()
        self._lines, self._dropped = [], 0

    def _report_new(self, progress: Fetching | Building) -> None:
        """Report it unless it was the last of its kind: for a moment, Nix expects to build what it has."""
        if self._last[type(progress)] != progress:
            self._last[type(progress)] = progress
            self._report(progress)

    def _schedule(self) -> None:
        if self._timer is None and self._report is not ignore_progress:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self.flush)


class BuildLog:
    """The state of a realisation, as its log shows it.

    Attributes:
        has_started: whether Nix has started to build or to fetch.

    Args:
        on_progress: called when an activity starts, ends or advances; not for a builder's own output.
        clock: in seconds.
        feed: receives the progress for people; ``None`` to report none.
    """

    def __init__(
        self,
        on_progress: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        feed: ProgressFeed | None = None,
    ) -> None:
        self._feed = feed or ProgressFeed(ignore_progress)
        self._copies: set[int] = set()
        self._counters: dict[int, int] = {}
        self._clock = clock
        self._started: dict[int, float] = {}
        self._seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self.has_started = False
        self._derivation_of_activity: dict[int, str] = {}
        self._built: set[str] = set()
        self._tails: dict[str, deque[str]] = {}
        self._errors: list[str] = []
        self._other_messages: list[str] = []
        self._other_lines: deque[str] = deque(maxlen=LOG_TAIL)
        self._nix_lines: deque[str] = deque(maxlen=LOG_TAIL)

    def read_line(self, line: bytes) -> None:
        """Read one line of Nix's stderr; keep lines that are not log events as plain text."""
        event = _parse(line)
        if event is not None:
            self._read_event(event)
            return
        text = plain(line.decode(errors="replace"))
        self._other_lines.append(text)
        if not line.startswith(_PREFIX):
            self._nix_lines.append(text)

    def _read_event(self, event: dict[str, Any]) -> None:  # noqa: C901 -- a case each
        self.has_started |= event.get("action") == "start" and event.get("type") in _WORK
        match event:
            case {"action": "result", "type": kind, "id": int(activity), "fields": [str(text)]} if (
                kind in _LOG_LINE_RESULTS
            ):
                derivation = self._derivation_of_activity.get(activity, "")
                self._tails.get(derivation, self._other_lines).append(shown := plain(text))
                self._feed.line(derivation, shown)
                return
            case {"action": "start", "type": kind, "id": int(activity), "fields": [str(path), *_]} if (
                kind == _BUILD_ACTIVITY
            ):
                self._start(activity, path.rpartition("/")[2])
            case {"action": "start", "type": kind, "id": int(activity)} if kind == _COPY_ACTIVITY:
                self._copies.add(activity)
            case {"action": "start", "type": int(kind), "id": int(activity)} if kind in _COUNTERS:
                self._counters[activity] = kind
            case {"action": "result", "type": kind, "fields": [int(counted), int(size), *_]} if (
                kind,
                counted,
            ) == (_EXPECTED_RESULT, _COPY_ACTIVITY):
                self._feed.announced(size)
            case {
                "action": "result",
                "type": kind,
                "id": int(activity),
                "fields": [int(done), int(expected), *_],
            } if kind == _PROGRESS_RESULT and activity in self._counters:
                self._feed.counted(self._counters[activity], done, expected)
            case {
                "action": "result",
                "type": kind,
                "id": int(activity),
                "fields": [int(done), int(expected), *_],
            } if kind == _PROGRESS_RESULT and activity in self._copies:
                self._feed.fetched(activity, done, expected)
            case {"action": "stop", "id": int(activity)}:
                if activity in self._started:
                    derivation = self._derivation_of_activity[activity]
                    self._seconds[derivation] = self._clock() - self._started.pop(activity)
                self._feed.stopped(activity)
            case {"action": "msg", "level": level, "msg": str(text)} if level == _LEVEL_ERROR:
                # Nix passes on `@nix {...}` that a builder has written. Its own errors have more fields.
                messages = self._errors if "raw_msg" in event else self._other_messages
                if len(messages) < _MOST_ERRORS:
                    messages.append(plain(text))
        self._on_progress()

    def _start(self, activity: int, derivation: str) -> None:
        self._derivation_of_activity[activity] = derivation
        self._tails.setdefault(derivation, deque(maxlen=LOG_TAIL))
        self._built.add(derivation)
        if len(self._tails) > _MOST_TAILS:
            del self._tails[next(iter(self._tails))]
        self._started[activity] = self._clock()
        self._feed.started(activity, derivation)

    @property
    def errors(self) -> tuple[str, ...]:
        """Errors of Nix itself, which no builder can forge; from a daemon, only the last one."""
        return tuple(self._errors)

    @property
    def _messages(self) -> list[str]:
        """Error messages: first Nix's own, then those of a daemon or a builder, which look alike."""
        return [*self._errors, *self._other_messages]

    @property
    def built(self) -> frozenset[str]:
        """``<hash>-<name>.drv`` of the derivations whose builders were started."""
        return frozenset(self._built)

    @property
    def failed_derivation(self) -> str | None:
        """``<hash>-<name>.drv`` of the derivation that failed first, if the log names one.

        One whose builder ran takes precedence over those that failed because of it.
        """
        named = [name for error in self._messages for name in _DERIVATION.findall(error)]
        return next((name for name in named if name in self._built), named[0] if named else None)

    @property
    def slowest_derivation(self) -> str | None:
        """The derivation whose builder ran longest, for a timeout that names no derivation (Nix 2.34)."""
        now = self._clock()
        running = {self._derivation_of_activity[a]: now - start for a, start in self._started.items()}
        seconds = self._seconds | running
        return max(seconds, key=seconds.__getitem__, default=None)

    @property
    def reports_full_disk(self) -> bool:
        """Whether Nix itself, not a builder that it quotes, ran out of disk space."""
        # Before it has parsed its options, Nix writes plain lines.
        plain_errors = [line for line in self._nix_lines if line.startswith("error:")]
        lines = (line.strip() for error in (*self._errors, *plain_errors) for line in error.splitlines())
        return any(reports_full_disk(line) for line in lines if not line.startswith(">"))

    def log_tail(self, derivation: str | None) -> tuple[str, ...]:
        """Return the last lines of a derivation's builder; without one, those of Nix itself.

        None, if that builder ran, wrote nothing, and Nix says no more than that it failed.
        """
        if derivation in self._built and not self._tails.get(derivation or "") and _ENDED.match(self.summary):
            return ()
        nix_messages = [line for error in self._messages for line in error.splitlines()]
        lines = self._tails.get(derivation or "") or nix_messages or self._other_lines
        return tuple(lines)[-LOG_TAIL:]

    @property
    def summary(self) -> str:
        """The reason of the failure, in Nix's words and on one line."""
        about_failed = [
            error for error in self._messages if self.failed_derivation and self.failed_derivation in error
        ]
        for error in about_failed or self._messages:
            lines = [line.strip() for line in error.removeprefix("error:").splitlines() if line.strip()]
            # Newer versions say "Cannot build '...drv'." and give the reason on the next line.
            reason = next((line for line in lines if line.startswith("Reason:")), lines[0] if lines else "")
            if reason:
                reason = reason.removeprefix("Reason:").strip().rstrip(";")
                return _BUILDER.sub("builder failed", reason)
        return self._other_lines[-1] if self._other_lines else "Nix gave no reason"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(_PREFIX):
        return None
    try:
        # Unlike the standard library's parser, this one bounds nesting and raises an ordinary error.
        event = from_json(line[len(_PREFIX) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def plain(text: str) -> str:
    """Return a text without what only a terminal interprets, and of a bounded length."""
    text = "\n".join(map(plain_text, text[:_LONGEST_RAW].split("\n")))
    return shortened(text, _LONGEST_LINE)
