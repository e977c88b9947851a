"""What ``nixery serve`` does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import structlog
import typer
import uvloop

from nixery.app import wire
from nixery.cli.logs import configure_logs, print_line
from nixery.errors import NixeryError
from nixery.nix.guard import guarded, hide_from_builders
from nixery.server.connections import ConnectionBounds
from nixery.server.serve import ADMIN_CONNECTIONS, Listener
from nixery.server.serve import serve as serve_application
from nixery.settings import Settings
from nixery.startup import Resources, prepare

_WRONG_SETTINGS = 2

# Seconds from the end of serving to that of the process, at most: threads cannot be ended, and one may be reading a large
# package set, or wait for a disk. Container runtimes kill after ten in all.
_LAST = 0.5


def serve() -> None:
    """See ``nixery.cli.serve.serve``."""
    # Until the server listens there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    configure_logs(logging.INFO)
    try:
        hide_from_builders()
        with guarded(os.environ):
            settings = Settings.from_environment(os.environ)
            configure_logs(logging.getLevelNamesMapping()[settings.log_level.upper()], settings.log_format)
            uvloop.run(_serve(settings, prepare(settings)))
    except NixeryError as error:
        for line in str(error).splitlines():
            print_line(line)
        raise typer.Exit(_WRONG_SETTINGS) from None


async def _serve(settings: Settings, resources: Resources) -> None:
    if resources.address is None:
        raise AssertionError("it was prepared for serving")
    if settings.withheld_variables:
        structlog.get_logger("nixery.nix").warning(
            "variables with a login are withheld from builders; name them in NIXERY_BUILD_ENVIRONMENT if builders may read them",
            variables=settings.withheld_variables,
        )
    async with wire(settings, resources) as components:
        bounds = ConnectionBounds(settings.max_connections, settings.max_connections_per_client)
        listeners = [Listener(components.application, resources.address, settings.port, bounds)]
        if settings.admin_port is not None and resources.admin_address is not None:
            admin = (resources.admin_address, settings.admin_port)
            listeners.append(Listener(components.admin, *admin, ADMIN_CONNECTIONS))
        observation = components.application.observation
        await serve_application(listeners, observation, settings.send_timeout, components.close)
        _end_soon()


def _end_soon() -> None:
    # What is left in directories of this process is swept by the next one.
    last = threading.Timer(_LAST, os._exit, (0,))
    last.daemon = True
    last.start()
