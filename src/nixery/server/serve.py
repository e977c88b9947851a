"""Running the application, and ending it."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from nixery.errors import SettingsError
from nixery.server.app import Application
from nixery.server.clients import Clients
from nixery.server.connections import ConnectionBounds, Connections

# Seconds from being told to stop until the end: for ending Nix, then for what is being sent. Container runtimes give ten
# before they kill.
_STOP = 9.0

# Seconds of them for ending builds: Nix has four, and what it started.
_CLOSE = 6.0

# Connections that wait to be accepted; a fleet of nodes may come at once.
_BACKLOG = 1024

# Connections that the web server accepts beyond the limit of a port, at most: as many may arrive between two
# polls, which end the surplus (connections.py).
_SURPLUS = 1024

# Connections to the listener for health and metrics.
ADMIN_CONNECTIONS = ConnectionBounds(64, 64)

# Descriptors besides those of connections and of the files that they send.
_OTHERS = 512

# The least total of connections, however few descriptors the system allows.
_FEWEST = 16

# Milliseconds until the header fields of a request, the first or another one, have to be there.
_IDLE = 30_000

# Bytes that a connection may hold in memory: header fields that come, and what somebody does not read.
_BUFFER = 128 * 1024

_log = structlog.get_logger("nixery.server")


@dataclass(frozen=True, slots=True)
class Listener:
    """An application, its address, and its limits.

    Attributes:
        address: to bind, from ``listening_address``.
        port: to bind.
        bounds: limits on its connections.
    """

    application: Application
    address: str
    port: int
    bounds: ConnectionBounds


async def serve(
    listeners: Sequence[Listener], clients: Clients, send_timeout: float, close: Callable[[], Awaitable[None]]
) -> None:
    """Serve until SIGTERM or SIGINT, then finish sending responses, end the builds and return.

    The web server is embedded: its process is this one, so that there is one process id to stop, and builds can be
    ended before connections are drained. Otherwise a pull that waits for a build would hold everything up.

    Args:
        listeners: what to serve, with one observation for all. Each has a web server of its own, so that too
            many connections to one do not block another.
        clients: tells clients apart.
        send_timeout: seconds after which a client that reads nothing is disconnected.
        close: ends builds; requests that wait for one get an answer that says to retry.
    """
    bounds = _with_descriptors(listeners)
    servers = [_server(listener, bounds[listener.port]) for listener in listeners]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    serving: asyncio.Future[Any] = asyncio.gather(*(server.serve() for server in servers))
    # All applications record requests in one place.
    connections = Connections(bounds, send_timeout, clients, listeners[0].application)
    watching = asyncio.ensure_future(connections.run())
    for one in listeners:
        _log.info("listening", address=one.address, port=one.port)
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    end = loop.time() + _STOP
    closing = asyncio.ensure_future(close())
    # A thread that waits for a disk is not waited for.
    await asyncio.wait({closing}, timeout=_CLOSE)
    for server in servers:
        server.stop()  # type: ignore[no-untyped-call]
    done, cut_off = await asyncio.wait({serving}, timeout=max(0.0, end - loop.time()))
    if cut_off:
        _log.warning("responses were cut off", seconds=_STOP)
    stopping.cancel()
    watching.cancel()
    for finished in done:
        finished.result()
    if closing.done():
        closing.result()
    else:
        closing.cancel()


def _server(listener: Listener, bounds: ConnectionBounds) -> Server:
    return Server(
        listener.application,
        address=listener.address,
        port=listener.port,
        interface=Interfaces.RSGI,
        # No registry client speaks HTTP/2 without TLS, and detecting it costs time.
        http=HTTPModes.http1,
        backlog=_BACKLOG,
        backpressure=bounds.total + _surplus(bounds),
        http1_settings=HTTP1Settings(header_read_timeout=_IDLE, max_buffer_size=_BUFFER),
        websockets=False,
        log_enabled=False,
    )


def _surplus(bounds: ConnectionBounds) -> int:
    return min(bounds.total, _SURPLUS)


def _with_descriptors(listeners: Sequence[Listener]) -> dict[int, ConnectionBounds]:
    """Raise the descriptor limit to what connections, and the files that they send, need.

    Returns:
        The limits of each port: lower ones if the system refuses.
    """
    bounds = {listener.port: listener.bounds for listener in listeners}
    fixed = _OTHERS + sum(_surplus(one) for one in bounds.values())
    needed = fixed + sum(2 * one.total for one in bounds.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return bounds
    # No higher: some programs that we start close all descriptors up to the limit, one by one.
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed >= needed:
        return bounds
    part = (allowed - _OTHERS) / (needed - _OTHERS)
    lower = {
        port: replace(one, total=min(one.total, max(_FEWEST, int(one.total * part))))
        for port, one in bounds.items()
    }
    _log.warning(
        "fewer connections than wanted: the process may not have enough open files (ulimit -n, LimitNOFILE=)",
        allowed=allowed,
        needed=needed,
        connections=sum(one.total for one in lower.values()),
    )
    return lower


def listening_address(host: str, port: int, settings: str = "NIXERY_HOST, PORT") -> str:
    """Resolve the listen address, and check that it is free.

    Args:
        host: name or address.
        port: to bind.
        settings: names of the settings with the address and port, for the message.

    Raises:
        SettingsError: the server cannot listen on it.
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
        raise SettingsError((f"cannot listen on {host}, port {port} ({settings}): {reason}",)) from None
    return str(address[0])
