"""A forward proxy for HTTPS, the only way from a client to servers whose names resolve nowhere."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.support.server import HOST

_PIECE = 1 << 16

# git tries without its login first, and learns from this answer how to send it.
_LOGIN_REQUIRED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="proxy"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
)


class ForwardProxy:
    """A proxy that tunnels connections (RFC 9110, 9.3.6).

    Args:
        ports: of the servers on the loopback interface, by the host names that clients ask for.
        login: ``user:password`` that it requires; empty for none.

    Attributes:
        port: of the proxy.
        targets: the hosts and ports of the tunnels, in order.
    """

    def __init__(self, ports: Mapping[str, int], login: str) -> None:
        self.port = 0
        self.targets: list[str] = []
        self._ports = ports
        self._login = login
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        """The URL of the proxy, with its login."""
        return f"http://{self._login}@{HOST}:{self.port}" if self._login else f"http://{HOST}:{self.port}"

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Tunnel connections until the event."""
        server = await asyncio.start_server(self._answer, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        # No connection outlives its loop.
        await asyncio.gather(*(self._end(writer) for writer in self._writers))

    @staticmethod
    async def _end(writer: asyncio.StreamWriter) -> None:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(maxsplit=2)
            port = self._ports.get(target.partition(":")[0])
            if not self._is_allowed(head):
                writer.write(_LOGIN_REQUIRED)
            elif method != "CONNECT" or port is None:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            else:
                self.targets.append(target)
                there, to_server = await asyncio.open_connection(HOST, port)
                self._writers.append(to_server)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_copy(reader, to_server), _copy(there, writer))
        writer.close()

    def _is_allowed(self, head: str) -> bool:
        expected = base64.b64encode(self._login.encode()).decode()
        return not self._login or f"proxy-authorization: basic {expected}".lower() in head.lower()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextmanager
def forward_proxy(ports: Mapping[str, int], login: str = "") -> Iterator[ForwardProxy]:
    """Run a proxy on a free port of the loopback interface, in a thread."""
    proxy = ForwardProxy(ports, login)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(proxy.serve(started, stop))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
