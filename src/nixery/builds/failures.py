"""Kinds of failed builds, by which lists of builds explain and filter them."""

from __future__ import annotations

from enum import StrEnum

from nixery.errors import (
    AnswerTooLarge,
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildFailed,
    ClosureTooLarge,
    EvaluationFailed,
    NixeryError,
    NixStoreFull,
    NixTimedOut,
    PackagesUnavailable,
    PlatformFailed,
    QuotaExceeded,
    Reason,
    ShuttingDown,
    SourceUnreachable,
    StorageFull,
    TooBusy,
)


class FailureKind(StrEnum):
    """Why a build failed."""

    UNKNOWN_PACKAGE = "unknown-package"
    UNAVAILABLE = "unavailable"
    EVALUATION = "evaluation"
    BUILDER = "builder"
    TIMEOUT = "timeout"
    TOO_LARGE = "too-large"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    BUSY = "busy"
    SOURCE = "source"
    NO_SPACE = "no-space"
    OTHER = "other"


_KINDS: tuple[tuple[type[NixeryError] | tuple[type[NixeryError], ...], FailureKind], ...] = (
    (EvaluationFailed, FailureKind.EVALUATION),
    (BuildFailed, FailureKind.BUILDER),
    ((NixTimedOut, BuildDeadlineExceeded), FailureKind.TIMEOUT),
    ((ClosureTooLarge, AnswerTooLarge), FailureKind.TOO_LARGE),
    (BuildCancelled, FailureKind.CANCELLED),
    (ShuttingDown, FailureKind.SHUTDOWN),
    ((TooBusy, QuotaExceeded), FailureKind.BUSY),
    (SourceUnreachable, FailureKind.SOURCE),
    ((NixStoreFull, StorageFull), FailureKind.NO_SPACE),
)


def failure_kind(error: NixeryError) -> FailureKind:
    """Return the kind of the failure that an error reports."""
    cause = error.error if isinstance(error, PlatformFailed) else error
    if isinstance(cause, PackagesUnavailable):
        is_unknown = any(package.reason == Reason.MISSING for package in cause.packages)
        return FailureKind.UNKNOWN_PACKAGE if is_unknown else FailureKind.UNAVAILABLE
    return next((kind for classes, kind in _KINDS if isinstance(cause, classes)), FailureKind.OTHER)
