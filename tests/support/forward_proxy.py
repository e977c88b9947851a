"""A forward proxy for HTTPS, the only way from a client to servers whose names resolve nowhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.support.server import HOST

_PIECE = 1 << 16


class ForwardProxy:
    """A proxy that tunnels connections (RFC 9110, 9.3.6).

    Args:
        ports: of the servers on the loopback interface, by the host names that clients ask for.

    Attributes:
        port: of the proxy.
        targets: the hosts and ports that clients asked for, in order.
        agents: the ``User-Agent`` of each of them, without its version.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.port = 0
        self.targets: list[str] = []
        self.agents: list[str] = []
        self._ports = ports

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Tunnel connections until the event."""
        server = await asyncio.start_server(self._answer, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split()
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            self.targets.append(target)
            self.agents.append(fields.get("user-agent", "").partition("/")[0])
            port = self._ports.get(target.partition(":")[0])
            if method == "CONNECT" and port is not None:
                there, to_server = await asyncio.open_connection(HOST, port)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_copy(reader, to_server), _copy(there, writer))
            else:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextmanager
def forward_proxy(ports: Mapping[str, int]) -> Iterator[ForwardProxy]:
    """Run a proxy on a free port of the loopback interface, in a thread."""
    proxy = ForwardProxy(ports)
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
