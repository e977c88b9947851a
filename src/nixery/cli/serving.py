"""What ``nixery serve`` does."""

from __future__ import annotations

import logging
import os
import signal
import sys

import structlog
import typer
import uvloop

from nixery.cli.logs import configure_logs
from nixery.errors import NixeryError
from nixery.nix.sandbox import configured_sandbox
from nixery.preparation import Prepared, prepare
from nixery.server.serve import serve as serve_application
from nixery.settings import Settings
from nixery.wiring import wire

_WRONG_SETTINGS = 2


def serve() -> None:
    """See ``nixery.cli.serve.serve``."""
    # Until the server listens there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    configure_logs(logging.INFO)
    try:
        settings = Settings.from_environment(os.environ)
        uvloop.run(_serve(settings, prepare(settings)))
    except NixeryError as error:
        for line in str(error).splitlines():
            typer.echo(f"nixery: {line}", err=True)
        raise typer.Exit(_WRONG_SETTINGS) from None


async def _serve(settings: Settings, prepared: Prepared) -> None:
    if prepared.address is None:
        raise AssertionError("it was prepared for serving")
    sandbox = configured_sandbox() if settings.nix_sandbox == "auto" else settings.nix_sandbox
    structlog.get_logger("nixery.nix").info("sandbox", setting=settings.nix_sandbox, in_effect=sandbox)
    async with wire(settings, prepared) as wired:
        await serve_application(wired.application, prepared.address, settings.port, wired.close)
