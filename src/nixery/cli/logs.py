"""Logs on stderr, as all commands write them."""

from __future__ import annotations

import sys

import structlog


def configure_logs(level: int) -> None:
    """Write log events of a level (``logging.INFO``, say) and above as lines."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            # Local variables stay out of tracebacks: they may be large, and nobody's business.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
