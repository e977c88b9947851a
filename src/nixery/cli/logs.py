"""Logs on stderr, as all commands write them."""

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
    """Write log events of a level (``logging.INFO``, say) and above, those of libraries from warnings on.

    Args:
        level: the least that is written.
        form: JSON, lines for people, or what stderr is fit for.
    """
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [_add_request, structlog.stdlib.add_log_level]
    last = _json() if as_json else _console()
    structlog.configure(
        processors=[LogBudget(), *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Dispensable(sys.stderr))),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _Dispensable:
    """A stream that drops text which it cannot write: its reader is gone, or the disk is full.

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
        # JSON's own escapes disappear when a program shows the text.
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
    """Escape and shorten texts; a console shows other values by their ``repr``, which escapes, too."""
    return {
        name: escaped_document(value, escaped_lines if name == "exception" else _one_line)
        for name, value in event.items()
    }


def _one_line(text: str) -> str:
    return escaped(shortened(text, _LONGEST))


def print_line(text: str) -> None:
    """Print one of our lines on stderr, with quoted text escaped."""
    typer.echo(f"nixery: {escaped(text)}", err=True)


def _write_traceback(sio: TextIO, exc_info: ExcInfo) -> None:
    # Local variables stay out of it: they may be large, and nobody's business. A message may have been made of what a client
    # sent, so none of its lines may look like one of the log's.
    for part in traceback.format_exception(*exc_info):
        sio.writelines(f"\n    | {escaped(line)}" for line in part.rstrip("\n").split("\n"))
