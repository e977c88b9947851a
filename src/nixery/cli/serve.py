"""``nixery serve``."""

from __future__ import annotations

import logging
import os
import signal
import sys

import structlog
import typer
import uvloop

from nixery.errors import NixeryError
from nixery.server.serve import serve as serve_application
from nixery.settings import Settings
from nixery.wiring import Prepared, prepare, wire

_WRONG_SETTINGS = 2


def serve() -> None:
    """Serve the registry. All settings come from the environment; the README lists them."""
    # Until the server listens there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            # Local variables stay out of tracebacks: they may be large, and nobody's business.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = Settings.from_environment(os.environ)
        uvloop.run(_serve(settings, prepare(settings)))
    except NixeryError as error:
        for line in str(error).splitlines():
            typer.echo(f"nixery: {line}", err=True)
        raise typer.Exit(_WRONG_SETTINGS) from None


async def _serve(settings: Settings, prepared: Prepared) -> None:
    async with wire(settings, prepared) as wired:
        await serve_application(wired.application, prepared.address, settings.port, wired.close)
