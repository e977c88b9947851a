"""Log lines and messages on stderr."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import structlog
import typer
from structlog.types import EventDict, ExcInfo, Processor

from nixery.plain_text import escaped, escaped_document, escaped_lines, shortened
from nixery.request_context import current_request
from nixery.telemetry.log_budget import LogBudget

# Characters of a text in a log line.
_LONGEST = 8000


def configure_logs(level: int, form: Literal["auto", "json", "console"] = "console") -> None:
    """Write log events to stderr; those of libraries from warnings on.

    Args:
        level: the lowest that is written, e.g. ``logging.INFO``.
        form: JSON, lines for people, or ``auto``: lines if stderr is a terminal.
    """
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [_add_request, structlog.stdlib.add_log_level]
    last = _json() if as_json else _console()
    structlog.configure(
        processors=[LogBudget(), *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _LossyStream(sys.stderr))),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _LossyStream:
    """A stream that drops text which it cannot write: its reader has closed it, or the disk is full.

    Otherwise every request that causes a log line would fail, although the server could answer it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _json() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        # Log viewers decode the escapes of JSON.
        _escape,
        structlog.processors.JSONRenderer(),
    ]


def _console() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        _escape,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback),
    ]


def _add_request(_logger: object, _method: str, event: EventDict) -> EventDict:
    request = current_request()
    if request is not None:
        event.setdefault("request_id", request.id)
    return event


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape and shorten texts; the console renderer shows other values by their ``repr``, which escapes, too."""
    return {
        name: escaped_document(value, escaped_lines if name == "exception" else _one_line)
        for name, value in event.items()
    }


def _one_line(text: str) -> str:
    return escaped(shortened(text, _LONGEST))


def print_line(text: str) -> None:
    """Print a message on stderr, escaped: it may quote untrusted text."""
    typer.echo(f"nixery: {escaped(text)}", err=True)


def _write_traceback(sio: TextIO, exc_info: ExcInfo) -> None:
    # Without local variables: they may be large, and contain secrets. A message may quote what a client sent,
    # so the lines are indented to differ from those of the log.
    for part in traceback.format_exception(*exc_info):
        sio.writelines(f"\n    | {escaped(line)}" for line in part.rstrip("\n").split("\n"))
