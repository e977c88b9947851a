"""Ending connections whose clients have stopped reading.

The web server waits for a client to read for as long as it takes. Nor would the kernel's ``TCP_USER_TIMEOUT`` do: on a client that reads
slowly its clock goes on as well, as long as his window is smaller than the piece that is to be sent next. So what was acknowledged is
looked at every now and then. Linux alone tells (tcp(7), ``TCP_INFO``); elsewhere nothing is ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

# Looks in the time that a client is given.
_LOOKS = 10

# linux/tcp.h, struct tcp_info: the 64-bit numbers tcpi_bytes_acked and tcpi_bytes_received begin here; tcpi_notsent_bytes is a 32-bit one,
# tcpi_unacked, the packets under way, another.
_BYTES_ACKED = 120
_NOT_SENT = 144
_UNACKED = 24
_INFO_SIZE = 192

_log = structlog.get_logger("nixery.server")

# What tcp_info says of a connection that is up, and of one whose client has said that it has no more to ask.
_ESTABLISHED, _CLOSE_WAIT = 1, 8

# asm-generic/socket.h: a number that no other socket has had, unlike a descriptor, which is given again.
_SO_COOKIE = 57


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a connection has come, and when that was seen for the first time."""

    acknowledged: int
    since: float


class StalledConnections:
    """Ends those connections of this process to a port that have something to send and make no progress.

    Args:
        port: where is listened.
        seconds: without an acknowledgement of a single byte.
        clock: seconds; only differences matter.
    """

    def __init__(self, port: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._seconds = seconds
        self._clock = clock
        self._seen: Mapping[bytes, _Progress] = {}

    async def run(self) -> None:
        """Look at them again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds / _LOOKS)
            for client in await asyncio.to_thread(self.look):
                _log.info("stalled", client=client, seconds=self._seconds)

    def look(self) -> list[str]:
        """Look at all connections once; return the clients of those that were ended."""
        now = self._clock()
        seen: dict[bytes, _Progress] = {}
        ended = []
        for connection in _connections(self._port):
            # One that goes while it is looked at needs no ending.
            with suppress(OSError):
                acknowledged = _acknowledged(connection)
                if acknowledged is None:
                    continue
                cookie = connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
                before = self._seen.get(cookie)
                if before is None or before.acknowledged != acknowledged:
                    seen[cookie] = _Progress(acknowledged, now)
                elif now - before.since < self._seconds:
                    seen[cookie] = before
                else:
                    host, port = connection.getpeername()[:2]
                    _end(connection)
                    ended.append(f"{host}:{port}")
        self._seen = seen
        return ended


def _connections(port: int) -> Iterator[socket.socket]:
    """Yield copies of the sockets of this process that are bound to a port; each is closed when the next one is asked for."""
    try:
        descriptors = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        with suppress(OSError), _copy(descriptor) as connection:
            if connection.family in {socket.AF_INET, socket.AF_INET6} and connection.getsockname()[1] == port:
                yield connection


def _copy(descriptor: int) -> socket.socket:
    # The web server, to which it belongs, may close it at any time, and anything else may have its number then; but not the copy's.
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _acknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the client has acknowledged; ``None`` if there is nothing that it should."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    if len(info) < _NOT_SENT + 4 or info[0] not in {_ESTABLISHED, _CLOSE_WAIT}:
        return None
    (unacknowledged,) = struct.unpack_from("=I", info, _UNACKED)
    (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT)
    if not unacknowledged and not not_sent:
        return None
    (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
    return int(acknowledged)


def _end(connection: socket.socket) -> None:
    # Or what is not sent would stay in memory for as long as the client does not read it.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
