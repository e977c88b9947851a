"""``nixery serve``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import typer

from nixery.errors import NixeryError

if TYPE_CHECKING:
    from nixery.settings import Settings
    from nixery.startup import Resources

_WRONG_SETTINGS = 2

# Seconds from the end of serving to that of the process, at most: a thread cannot be ended, and may be
# reading a large package set, or waiting for a disk. Container runtimes kill after ten seconds in total.
_EXIT_TIMEOUT = 0.5


def serve() -> None:
    """Serve the registry. All settings are environment variables; docs/reference/settings.md lists them.

    Example: PORT=8080 NIXERY_CHANNEL=nixos-unstable NIXERY_STORAGE_BACKEND=filesystem STORAGE_PATH=/var/lib/nixery nixery serve
    """
    import uvloop

    from nixery.cli.logs import configure_logs, print_line
    from nixery.nix.processes import guarded, hide_from_builders
    from nixery.settings import Settings
    from nixery.startup import prepare

    # Until the server listens, there is nothing to finish.
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
    import structlog

    from nixery.app import assemble
    from nixery.server import serve as server
    from nixery.server.connections import ConnectionBounds

    if resources.address is None:
        raise AssertionError("the resources were prepared for a server")
    if settings.withheld_variables:
        structlog.get_logger("nixery.nix").warning(
            "variables with a login are withheld from builders; name them in NIXERY_BUILD_ENVIRONMENT if builders may read them",
            variables=settings.withheld_variables,
        )
    for name, near in settings.unknown_variables.items():
        structlog.get_logger("nixery.settings").warning(
            "unknown setting", variable=name, **({"did_you_mean": near} if near else {})
        )
    async with assemble(settings, resources) as components:
        application, admin = components.application, components.admin
        bounds = ConnectionBounds(settings.max_connections, settings.max_connections_per_client)
        # Other storages stream blobs through the server.
        http2 = settings.storage_backend == "filesystem"
        listeners = [
            server.Listener(application, resources.address, settings.port, bounds, resources.tls, http2)
        ]
        if settings.admin_port is not None and resources.admin_address is not None:
            listeners.append(
                server.Listener(admin, resources.admin_address, settings.admin_port, server.ADMIN_CONNECTIONS)
            )
        end = server.BuildsEnd(components.drain, settings.drain_timeout, components.close)
        await server.serve(listeners, application.observation, settings.send_timeout, end)
        _force_exit_after_timeout()


def _force_exit_after_timeout() -> None:
    # The next process removes the files that this one leaves behind.
    timer = threading.Timer(_EXIT_TIMEOUT, os._exit, (0,))
    timer.daemon = True
    timer.start()
