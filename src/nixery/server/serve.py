"""Running the application, and ending it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable

import structlog
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from nixery.errors import SettingsError
from nixery.server.rsgi import Application
from nixery.server.stalled import StalledConnections

# Seconds from being told to stop until the end: for ending Nix, then for what is being sent. Container runtimes give ten
# before they kill.
_STOP = 9.0

# Seconds of them for ending builds: Nix has four, and what it started.
_CLOSE = 6.0

# Connections that wait to be accepted; a fleet of nodes may come at once.
_BACKLOG = 1024

# Connections at the same time; more of them wait to be accepted. Each may be of somebody who reads slowly.
_CONNECTIONS = 1024

# Milliseconds until the header fields of a request, the first or another one, have to be there.
_IDLE = 30_000

# Bytes that a connection may hold in memory: header fields that come, and what somebody does not read.
_BUFFER = 128 * 1024

_log = structlog.get_logger("nixery.server")


async def serve(
    application: Application,
    address: str,
    port: int,
    send_timeout: float,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being sent, end the builds and return.

    The web server is embedded: its process is this one, so that there is one process id to stop, and builds can be
    ended before connections are drained. Otherwise a pull that waits for a build would hold everything up.

    Args:
        application: what to serve.
        address: to bind, from ``listening_address``.
        port: to bind.
        send_timeout: seconds after which a client that takes nothing of what it is sent is cut off.
        close: ends builds; whoever waits for one is told to come back.
    """
    server = Server(
        application,
        address=address,
        port=port,
        interface=Interfaces.RSGI,
        # No client of a registry speaks HTTP/2 without TLS, and looking for it costs time.
        http=HTTPModes.http1,
        backlog=_BACKLOG,
        backpressure=_CONNECTIONS,
        http1_settings=HTTP1Settings(header_read_timeout=_IDLE, max_buffer_size=_BUFFER),
        websockets=False,
        log_enabled=False,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    serving = asyncio.ensure_future(server.serve())
    stalled = asyncio.ensure_future(StalledConnections(port, send_timeout).run())
    _log.info("listening", address=address, port=port)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    end = loop.time() + _STOP
    closing = asyncio.ensure_future(close())
    # A thread that waits for a disk is not waited for.
    await asyncio.wait({closing}, timeout=_CLOSE)
    server.stop()  # type: ignore[no-untyped-call]
    done, cut_off = await asyncio.wait({serving}, timeout=max(0.0, end - loop.time()))
    if cut_off:
        _log.warning("responses were cut off", seconds=_STOP)
    stopping.cancel()
    stalled.cancel()
    for finished in done:
        finished.result()
    if closing.done():
        closing.result()
    else:
        closing.cancel()


def listening_address(host: str, port: int) -> str:
    """Resolve the address to bind, and see whether it is free.

    Raises:
        SettingsError: it cannot be listened on.
    """
    # The web server takes addresses alone, no names, and lets several processes share a port. Two registries that
    # know nothing of each other must not.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            (f"cannot listen on {host}, port {port} (NIXERY_HOST, PORT): {reason}",)
        ) from None
    return str(address[0])
