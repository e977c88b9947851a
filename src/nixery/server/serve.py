"""Running the application, and ending it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable

import structlog
from granian.constants import Interfaces
from granian.server.embed import Server

from nixery.errors import SettingsError
from nixery.server.asgi import Application

# Seconds for responses that are being sent when the server is told to stop. Together with what ending Nix takes,
# it stays below the ten seconds that container runtimes give before they kill.
_DRAIN = 4.0

_log = structlog.get_logger("nixery.server")


async def serve(application: Application, host: str, port: int, close: Callable[[], Awaitable[None]]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being sent, end the builds and return.

    The web server is embedded: its process is this one, so that there is one process id to stop, and builds can be
    ended before connections are drained. Otherwise a pull that waits for a build would hold everything up.

    Args:
        application: what to serve.
        host: address to bind.
        port: port to bind.
        close: ends builds; whoever waits for one is told to come back.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    _check_address(host, port)
    server = Server(
        application,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        websockets=False,
        log_enabled=False,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    serving = asyncio.ensure_future(server.serve())
    _log.info("listening", host=host, port=port)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    await close()
    server.stop()  # type: ignore[no-untyped-call]
    done, _ = await asyncio.wait({serving}, timeout=_DRAIN)
    stopping.cancel()
    for finished in done:
        finished.result()


def _check_address(host: str, port: int) -> None:
    # The web server lets several processes share a port. Two registries that know nothing of each other must not.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise SettingsError(
            (f"cannot listen on {host}, port {port} (NIXERY_HOST, PORT): {error.strerror}",)
        ) from None
