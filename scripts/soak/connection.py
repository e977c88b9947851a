"""A small HTTP client for hundreds of connections at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

# Seconds for one answer: a place in the queue, and a build.
_PATIENCE = 120

# Bytes of an answer that may be there before they are asked for. With few of them a large blob takes hundreds of turns of an event loop
# that has hundreds of other clients, and what is measured is the loop.
_READ_AHEAD = 4 * 1024 * 1024

_ACCEPT = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Answer:
    """A response. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection(host, port, limit=_READ_AHEAD))

    async def get(self, path: str) -> Answer:
        """Ask for something, and read all of the answer."""
        async with asyncio.timeout(_PATIENCE):
            await self.send(path)
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, body)

    async def send(self, path: str) -> None:
        """Ask for something, and no more."""
        request = f"GET {path} HTTP/1.1\r\nHost: registry\r\nAccept: {_ACCEPT}\r\n\r\n"
        self._writer.write(request.encode())
        await self._writer.drain()

    async def read_some(self, size: int) -> None:
        """Read no more than the beginning of an answer."""
        await self._reader.read(size)

    def abort(self) -> None:
        """Go away without a word."""
        self._writer.transport.abort()
