"""Run the web server, and shut it down."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import structlog
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from nixery.errors import SettingsError
from nixery.server.app import Application
from nixery.server.connections import (
    ConnectionBounds,
    Connections,
    listening_sockets,
    send_new_connections_to_newest,
)
from nixery.server.http import AnswerProtocol, Fields, Scope, Transport
from nixery.server.observation import Observation
from nixery.server.tls import CredentialsWatch, TLSFiles, copies, server_options

# Seconds from the signal to the end: for ending Nix, then for sending responses. Container runtimes kill
# after ten.
_SHUTDOWN_TIMEOUT = 9.0

# Seconds of them for ending builds: Nix and its children have four.
_CLOSE_TIMEOUT = 6.0

# Connections that wait to be accepted; a fleet of nodes may come at once.
_BACKLOG = 1024

# Connections that the web server accepts beyond the limit of a port, at most: as many may arrive between two
# polls, which end the surplus (connections.py).
_SURPLUS = 1024

# Connections to the listener for health and metrics.
ADMIN_CONNECTIONS = ConnectionBounds(64, 64)

# Descriptors besides those of connections and of the files that they send.
_OTHER_DESCRIPTORS = 512

# The lowest limit on connections, however few descriptors the system allows.
_FEWEST_CONNECTIONS = 16

# Milliseconds for the header fields of a request to arrive, on a new or a kept-alive connection.
_HEADER_TIMEOUT = 30_000

# Bytes that a connection may hold in memory: header fields received, and data that its client does not read.
_BUFFER = 128 * 1024

# Requests at once on a connection of HTTP/2, and bytes that each may buffer. Each costs as much as a connection of
# HTTP/1.1, a quarter of a MiB and an open file, if its client does not accept the body. Header fields of a request have
# the same limit as with HTTP/1.1.
_STREAMS = 4
_STREAM_BUFFER = 64 * 1024

# Seconds for which a connection with TLS may be silent: HTTP/2 has no timeout of the web server. Clients in Go close
# idle ones after 90.
_IDLE_TLS = 120.0

# Seconds from the start of a web server with a new certificate to the stop of the previous one, which breaks off
# handshakes and closes idle connections: the web server allows ten for a handshake, and as many as below for the next
# request on a connection of HTTP/1.1.
_HAND_OVER = _HEADER_TIMEOUT / 1000 + 3.0

# Web servers that still send responses with a previous certificate. With more, a changed certificate waits.
_MOST_PREVIOUS = 3

_CLOSE = ("connection", "close")

# Seconds for a web server to listen, and between two looks.
_LISTEN_TIMEOUT, _LOOK_EVERY = 10.0, 0.02

_log = structlog.get_logger("nixery.server")


@dataclass(frozen=True, slots=True)
class Listener:
    """An application, its address, and its limits.

    Attributes:
        address: to bind, from ``listening_address``.
        port: to bind.
        bounds: limits on its connections.
        tls: its credentials; ``None`` for no TLS.
        http2: whether clients may choose HTTP/2. The web server keeps pieces of a streamed body in memory without
            limit, and the kernel's counts (``Backpressure``) do not say which stream of a connection they are of.
    """

    application: Application
    address: str
    port: int
    bounds: ConnectionBounds
    tls: CredentialsWatch | None = None
    http2: bool = False


@dataclass(frozen=True, slots=True)
class BuildsEnd:
    """How builds end when the server stops.

    Attributes:
        drain: starts no more builds, and returns once none is running.
        seconds: for which running builds may go on.
        close: ends builds; requests that wait for one get an answer that says to retry.
    """

    drain: Callable[[], Awaitable[None]]
    seconds: float
    close: Callable[[], Awaitable[None]]


async def serve(
    listeners: Sequence[Listener],
    observation: Observation,
    send_timeout: float,
    end: BuildsEnd,
) -> None:
    """Serve until SIGTERM or SIGINT; then wait for builds, end them, finish sending responses and return.

    While builds go on, stored images are served, and a second signal ends the wait.

    The web server is embedded: it runs in this process, so that there is one process id to stop, and builds
    end before connections are drained. Otherwise a pull that waits for a build would delay the shutdown.

    Args:
        listeners: each has its own web server, so that too many connections to one do not block another.
        observation: the requests of all listeners.
        send_timeout: seconds after which a client that reads nothing is disconnected.
        end: of the builds.
    """
    bounds = _with_descriptors(listeners)
    servers = [_WebServer(listener, bounds[listener.port]) for listener in listeners]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    serving: asyncio.Future[Any] = asyncio.gather(*(server.run() for server in servers))
    connections = Connections(bounds, send_timeout, observation)
    watching = asyncio.ensure_future(connections.run())
    for one in listeners:
        _log.info("listening", address=one.address, port=one.port, **({"tls": True} if one.tls else {}))
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if end.seconds and not serving.done():
        _log.info("stopping when running builds have ended", seconds=end.seconds)
        stop.clear()
        stopping = asyncio.ensure_future(stop.wait())
        draining = asyncio.ensure_future(end.drain())
        ends = {serving, stopping, draining}
        await asyncio.wait(ends, timeout=end.seconds, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
    _log.info("stopping")
    until = loop.time() + _SHUTDOWN_TIMEOUT
    closing = asyncio.ensure_future(end.close())
    # A thread that waits for a disk must not delay the shutdown.
    await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT)
    for server in servers:
        server.stop()
    done, cut_off = await asyncio.wait({serving}, timeout=max(0.0, until - loop.time()))
    if cut_off:
        _log.warning("responses were cut off", seconds=_SHUTDOWN_TIMEOUT)
    stopping.cancel()
    watching.cancel()
    for finished in done:
        finished.result()
    if closing.done():
        closing.result()
    else:
        closing.cancel()


class _WebServer:
    """The web server of a listener. With TLS, another one replaces it whenever the credentials change.

    granian reads certificates only at its start. So the new web server listens on the same port, and gets all new
    connections; the previous one completes its handshakes and responses, and then stops.
    """

    def __init__(self, listener: Listener, bounds: ConnectionBounds) -> None:
        self._listener = listener
        self._bounds = bounds
        self._servers: dict[asyncio.Future[Any], Server] = {}
        self._target = _Target(listener.application)
        self._stopping = False

    async def run(self) -> None:
        """Serve until it is stopped, and all responses are sent."""
        self._start()
        renewing = (
            None if self._listener.tls is None else asyncio.ensure_future(self._renew(self._listener.tls))
        )
        try:
            while self._servers:
                done, _ = await asyncio.wait(self._servers, return_when=asyncio.FIRST_COMPLETED)
                for ended in done:
                    del self._servers[ended]
                    ended.result()
        finally:
            if renewing is not None:
                renewing.cancel()

    def stop(self) -> None:
        """Accept no more connections, and close each one after its response."""
        self._stopping = True
        for server in self._servers.values():
            server.stop()  # type: ignore[no-untyped-call]

    def _start(self) -> None:
        files, cleanup = None, ExitStack()
        if self._listener.tls is not None:
            files = cleanup.enter_context(copies(self._listener.tls.current, self._listener.tls.directory))
            self._target = _Target(self._listener.application)
        server = _server(self._listener, self._target, self._bounds, files)
        serving = asyncio.ensure_future(server.serve())
        serving.add_done_callback(lambda _: cleanup.close())
        self._servers[serving] = server

    async def _renew(self, tls: CredentialsWatch) -> None:
        while True:
            credentials = await tls.next()
            while len(self._servers) > _MOST_PREVIOUS:  # noqa: ASYNC110 -- no hurry
                await asyncio.sleep(_HAND_OVER)
            if self._stopping:
                return
            previous, target = list(self._servers.values()), self._target
            before = listening_sockets(self._listener.port)
            self._start()
            until = asyncio.get_running_loop().time() + _LISTEN_TIMEOUT
            while set(listening_sockets(self._listener.port)) <= set(before):
                if asyncio.get_running_loop().time() > until:
                    _log.error(
                        "the web server with the new certificate does not listen", port=self._listener.port
                    )
                    break
                await asyncio.sleep(_LOOK_EVERY)
            send_new_connections_to_newest(self._listener.port)
            _log.info(
                "certificate renewed", expires=credentials.expires.isoformat(), port=self._listener.port
            )
            target.is_closing = True
            await asyncio.sleep(_HAND_OVER)
            for server in previous:
                server.stop()  # type: ignore[no-untyped-call]
            _log.info("previous certificate retired", port=self._listener.port)


class _Target:
    """What a web server with TLS calls.

    Attributes:
        is_closing: whether clients are asked to close their connections, since another web server takes over. A
            connection that the server closes while a request is on its way would lose that.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.is_closing = False

    def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> Coroutine[Any, Any, None]:
        """Have the application answer a request."""
        if self.is_closing and scope.http_version != "2":
            protocol = _ClosingProtocol(protocol)
        return self._application.__rsgi__(scope, protocol)


class _ClosingProtocol:
    """Adds ``Connection: close`` to a response of HTTP/1.1."""

    def __init__(self, protocol: AnswerProtocol) -> None:
        self._protocol = protocol

    def response_empty(self, status: int, headers: Fields) -> None:
        self._protocol.response_empty(status, [*headers, _CLOSE])

    def response_bytes(self, status: int, headers: Fields, body: bytes) -> None:
        self._protocol.response_bytes(status, [*headers, _CLOSE], body)

    def response_file(self, status: int, headers: Fields, file: str) -> None:
        self._protocol.response_file(status, [*headers, _CLOSE], file)

    def response_file_range(self, status: int, headers: Fields, file: str, start: int, end: int) -> None:
        self._protocol.response_file_range(status, [*headers, _CLOSE], file, start, end)

    def response_stream(self, status: int, headers: Fields) -> Transport:
        return self._protocol.response_stream(status, [*headers, _CLOSE])

    async def client_disconnect(self) -> None:
        await self._protocol.client_disconnect()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._protocol)


def _server(
    listener: Listener, target: _Target, bounds: ConnectionBounds, files: TLSFiles | None = None
) -> Server:
    # Without TLS no registry client speaks HTTP/2, and detecting it costs time.
    options: dict[str, Any] = (
        {"http": HTTPModes.http1} if files is None else server_options(files, http2=listener.http2)
    )
    return Server(
        listener.application if files is None else target,
        address=listener.address,
        port=listener.port,
        interface=Interfaces.RSGI,
        backlog=_BACKLOG,
        backpressure=bounds.total + _surplus(bounds),
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_TIMEOUT, max_buffer_size=_BUFFER),
        http2_settings=HTTP2Settings(
            initial_connection_window_size=_STREAM_BUFFER,
            initial_stream_window_size=_STREAM_BUFFER,
            max_concurrent_streams=_STREAMS,
            max_headers_size=_BUFFER,
            max_send_buffer_size=_STREAM_BUFFER,
        ),
        websockets=False,
        log_enabled=False,
        **options,
    )


def _surplus(bounds: ConnectionBounds) -> int:
    return min(bounds.total, _SURPLUS)


def _with_descriptors(listeners: Sequence[Listener]) -> dict[int, ConnectionBounds]:
    """Raise the descriptor limit to what connections, and the files that they send, need.

    Returns:
        The limits of each port: lower ones if the system refuses.
    """
    bounds = {
        one.port: one.bounds if one.tls is None else replace(one.bounds, idle=_IDLE_TLS) for one in listeners
    }
    fixed = _OTHER_DESCRIPTORS + sum(_surplus(one) for one in bounds.values())
    # A connection and the files that it sends.
    needed = fixed + sum(
        (1 + _STREAMS if one.tls is not None and one.http2 else 2) * one.bounds.total for one in listeners
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return bounds
    # No higher: some child processes close all descriptors up to the limit, one by one.
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed >= needed:
        return bounds
    share = (allowed - _OTHER_DESCRIPTORS) / (needed - _OTHER_DESCRIPTORS)
    lower = {
        port: replace(one, total=min(one.total, max(_FEWEST_CONNECTIONS, int(one.total * share))))
        for port, one in bounds.items()
    }
    _log.warning(
        "lowered the limit on connections: the process may open too few files (raise ulimit -n or LimitNOFILE=)",
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
    # The web server takes addresses only, no names, and lets several processes share a port; independent
    # registries must not.
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
