"""Failures that would be the same a moment later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nixery.errors import (
    AnswerTooLarge,
    BuildFailed,
    BuildTimedOut,
    BuildTookTooLong,
    ClosureTooLarge,
    EvaluationFailed,
    NixeryError,
    PackagesUnavailable,
    UnsafeContents,
)
from nixery.image.request import ImageRequest
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.pipeline.events import Build
from nixery.sources.source import Pin

# Clients ask again at once, containerd up to five times.
_LASTING = (
    AnswerTooLarge,
    BuildFailed,
    BuildTimedOut,
    BuildTookTooLong,
    ClosureTooLarge,
    EvaluationFailed,
    PackagesUnavailable,
    UnsafeContents,
)

# Bytes of failures that are remembered.
_CAPACITY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """A build that failed a moment ago, and why."""

    build: Build
    error: NixeryError
    until: float


class RecentFailures:
    """Remembers failures for a while.

    Args:
        time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(self, time_to_live: float, clock: Callable[[], float]) -> None:
        self._time_to_live = time_to_live
        self._clock = clock
        self._kept: LeastRecentlyUsed[tuple[Pin, ImageRequest], Failure] = LeastRecentlyUsed(_CAPACITY)

    def add(self, build: Build, error: NixeryError) -> None:
        """Remember a failure, if another attempt would be in vain."""
        if isinstance(error, _LASTING):
            failure = Failure(build, error.without_frames(), self._clock() + self._time_to_live)
            self._kept.put((build.pin, build.request), failure, size_of(error))

    def find(self, request: ImageRequest, pin: Pin) -> Failure | None:
        """Return the failure that is the answer still."""
        failure = self._kept.get((pin, request))
        return failure if failure is not None and failure.until > self._clock() else None


def size_of(error: NixeryError) -> int:
    """Bytes that an error holds: its message, the end of a log, and the reasons of unavailable packages."""
    packages = getattr(error, "packages", ())
    return len(str(error)) + sum(map(len, (*getattr(error, "log_tail", ()), *map(str, packages))))
