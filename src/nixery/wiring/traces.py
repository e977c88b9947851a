"""Traces, where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nixery.settings import Settings

if TYPE_CHECKING:
    from nixery.observability.tracing import Traces


def make_traces(settings: Settings) -> Traces | None:
    """Make what writes traces; ``None`` if nobody wants any, or if what is needed for them is not installed."""
    if not settings.traces:
        return None
    try:
        from nixery.observability.tracing import Traces  # noqa: PLC0415 -- an extra, and slow to import
    except ImportError as error:
        # No reason not to serve: the variables are often set for whole machines.
        structlog.get_logger("nixery.traces").warning(
            "no traces: OpenTelemetry's variables are set, but it is not installed; "
            "pip install 'nixery[otel]' installs it, OTEL_TRACES_EXPORTER=none ends this message",
            missing=error.name,
        )
        return None
    return Traces()
