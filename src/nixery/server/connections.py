"""Ending connections: those whose clients have stopped reading, and those that are too many.

The web server has no say in this: it waits for a client to read for as long as that takes, and accepts connections until it has as
many as it may have, whosever they are. So it may have more than we want, and the surplus is ended here. A client that comes is let in, and a
connection that no request needs gives way.

The kernel's ``TCP_USER_TIMEOUT`` would not do for the first: on a client that reads slowly its clock goes on as well, as long as the
client's window is smaller than the piece that is to be sent next. So what was acknowledged is looked at every now and then. Linux alone tells
(tcp(7), ``TCP_INFO``); elsewhere nothing is ended.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import structlog

from nixery.request_context import Client
from nixery.server.clients import Address, Clients, peer_key

# Looks in the time that a client is given to take something.
_LOOKS = 10

# Seconds between two looks at how many descriptors there are, which takes a tenth of the time of looking at a connection behind each; and
# between two looks at the connections, as long as there may be too many from one address but not in all.
_PAUSE = 0.25
_LONGER = 1.0

# The part of all connections from which on every look counts.
_NEARLY = 0.75

# Seconds between two lines about connections that were too many.
_QUIET = 10.0

# linux/tcp.h, struct tcp_info: the 64-bit number tcpi_bytes_acked begins here; tcpi_notsent_bytes is a 32-bit one, and so are tcpi_unacked, the
# packets under way, and the milliseconds since something was sent and since something came.
_BYTES_ACKED = 120
_NOT_SENT = 144
_UNACKED = 24
_LAST_SENT = 44
_LAST_RECEIVED = 52
_INFO_SIZE = 192

# What tcp_info says of a connection that is up, and of one whose client has said that it has no more to ask.
_ESTABLISHED, _CLOSE_WAIT = 1, 8

# asm-generic/socket.h: a number that no other socket has had, unlike a descriptor, which is given again.
_SO_COOKIE = 57

# Seconds after which a connection that no request needs is one that is kept for later, rather than one whose request is under way.
_SETTLED = 2.0

_Key = tuple[Address | None, str]

_log = structlog.get_logger("nixery.server")


class Reason(Enum):
    """Why a connection is ended."""

    STALLED = "stalled"
    SHARE = "too many connections from one address"
    TOTAL = "too many connections"


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """How many connections a port has.

    Attributes:
        total: at the same time.
        per_client: of them, those of one client; trusted proxies have as many as there are.
    """

    total: int
    per_client: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that was ended: address and port of the other end, whose it is, and why."""

    peer: str
    client: Client
    reason: Reason


@dataclass(slots=True)
class _Seen:
    """What is known of a connection from one look to the next.

    Attributes:
        peer: address and port of the other end, and the same by ``peer_key``.
        host: its address.
        since: when it was seen for the first time, and no two have the same.
        acknowledged: bytes, and when there were as many for the first time; ``None`` if there is nothing to acknowledge.
    """

    peer: str
    key: _Key
    host: str
    since: int
    acknowledged: int | None = None
    waiting_since: float = 0.0


@dataclass(slots=True)
class _Connection:
    """A connection as it stands.

    Attributes:
        idle_since: seconds of the system's clock; ``None`` if a request is answered on it.
    """

    descriptor: int
    cookie: bytes
    seen: _Seen
    idle_since: float | None


class Requests(Protocol):
    """The requests that are being answered."""

    def peers(self) -> Collection[str]:
        """Return who has sent them, as the web server writes addresses."""
        ...

    def abandon(self, peers: Collection[str]) -> None:
        """Stop waiting for those whose clients have gone."""
        ...


class Connections:
    """Bounds the connections of this process to its ports.

    Too many of one client: those that no request needs are ended, the longest idle ones first, and then the latest ones. Too many
    in all: of the client that has the most, one that it keeps for later; where no client has any, what comes next for the client that
    has the most. A request whose connection is gone waits for nothing any more.

    Args:
        ports: where is listened, and how many connections there are to be.
        seconds: for which a client may take nothing of what it is sent.
        clients: tells them apart.
        requests: that are being answered.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        ports: Mapping[int, ConnectionBounds],
        seconds: float,
        clients: Clients,
        requests: Requests,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ports = ports
        self._seconds = seconds
        self._clients = clients
        self._requests = requests
        self._connected: frozenset[_Key] = frozenset()
        self._clock = clock
        self._seen: Mapping[bytes, _Seen] = {}
        self._number = 0
        self._told = -_QUIET
        self._untold: Counter[tuple[Reason, Client]] = Counter()

    async def run(self) -> None:
        """Look at them again and again, until it is cancelled."""
        period = self._seconds / _LOOKS
        # Fewer descriptors than this, and no bound can be exceeded.
        few = min(min(bounds.per_client, bounds.total) for bounds in self._ports.values())
        many = max(bounds.total for bounds in self._ports.values()) * _NEARLY
        looked = self._clock()
        while True:
            await asyncio.sleep(min(_PAUSE, period))
            number, age = len(_descriptors()), self._clock() - looked
            # Before the connections, so that each of these had one by then. And on the event loop, where that changes.
            answering = {peer_key(peer): peer for peer in self._requests.peers()}
            if age >= period or number > many or (age >= _LONGER and (number > few or len(answering) > few)):
                looked = self._clock()
                self._tell(await asyncio.to_thread(self.look, answering.keys()))
                if number:  # or nobody can tell
                    gone = answering.keys() - self._connected
                    self._requests.abandon({answering[key] for key in gone})

    def look(self, answering: Collection[_Key] = ()) -> list[Ended]:
        """Look at all connections once; return those that were ended.

        Args:
            answering: by ``peer_key``, whose requests are being answered.
        """
        now = self._clock()
        seen: dict[bytes, _Seen] = {}
        on_port: dict[int, list[_Connection]] = {port: [] for port in self._ports}
        ended = []
        for descriptor, connection, port in _sockets(self._ports):
            # One that goes while it is looked at needs no ending.
            with suppress(OSError):
                found = self._look_at(descriptor, connection, answering, now)
                if found is None:
                    continue
                seen[found.cookie] = found.seen
                waited = now - found.seen.waiting_since
                if found.seen.acknowledged is not None and waited >= self._seconds:
                    _end(connection, at_once=True)
                    ended.append(self._ended(found, Reason.STALLED))
                else:
                    on_port[port].append(found)
        self._seen = seen
        self._connected = frozenset(one.key for one in seen.values())
        for port, connections in on_port.items():
            bounds = self._ports[port]
            if len(connections) > min(bounds.per_client, bounds.total):
                ended += self._end_surplus(connections, bounds)
        return ended

    def _look_at(
        self, descriptor: int, connection: socket.socket, answering: Collection[_Key], now: float
    ) -> _Connection | None:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
        if len(info) < _NOT_SENT + 4 or info[0] not in {_ESTABLISHED, _CLOSE_WAIT}:
            return None
        cookie = connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        seen = self._seen.get(cookie)
        if seen is None:
            host, port = connection.getpeername()[:2]
            self._number += 1
            peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            seen = _Seen(peer, peer_key(peer), host, self._number)
        (unacknowledged,) = struct.unpack_from("=I", info, _UNACKED)
        (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT)
        idle_since = None
        if unacknowledged or not_sent:
            (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
            if seen.acknowledged != acknowledged:
                seen.acknowledged, seen.waiting_since = acknowledged, now
        else:
            seen.acknowledged = None
            if seen.key not in answering:
                (sent,) = struct.unpack_from("=I", info, _LAST_SENT)
                (received,) = struct.unpack_from("=I", info, _LAST_RECEIVED)
                # Not by how long: the looks at two connections may be far apart if another process has the processor.
                idle_since = time.monotonic() - min(sent, received) / 1000
        return _Connection(descriptor, cookie, seen, idle_since)

    def _end_surplus(self, connections: Sequence[_Connection], bounds: ConnectionBounds) -> Iterator[Ended]:
        of_client: dict[Client, list[_Connection]] = {}
        for connection in connections:
            of_client.setdefault(self._clients.client_of_host(connection.seen.host), []).append(connection)
        for theirs in of_client.values():
            # Those that are ended first come last: idle ones, the longest idle one of them at the very end, and before them the latest.
            theirs.sort(key=_how_dispensable)
        total, now = len(connections), time.monotonic()
        for theirs in of_client.values():
            while len(theirs) > bounds.per_client and not self._clients.trusts_host(theirs[0].seen.host):
                total -= 1
                yield from self._end_one(theirs.pop(), Reason.SHARE)
        while total > bounds.total:
            # One whose request is just coming must not give way to a client whose many connections are all at work. So first of those that
            # have kept one for later the client with the most, then of all.
            theirs = max(
                of_client.values(), key=lambda some: (_has_settled(some, now), len(some), _age(some))
            )
            total -= 1
            yield from self._end_one(theirs.pop(), Reason.TOTAL)

    def _end_one(self, found: _Connection, reason: Reason) -> Iterable[Ended]:
        with suppress(OSError), _copy(found.descriptor) as connection:
            # Anything else may have its number by now.
            if connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) == found.cookie:
                _end(connection, at_once=found.idle_since is None)
                return [self._ended(found, reason)]
        return []

    def _ended(self, found: _Connection, reason: Reason) -> Ended:
        return Ended(found.seen.peer, self._clients.client_of_host(found.seen.host), reason)

    def _tell(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            if one.reason is Reason.STALLED:
                _log.info("stalled", client=one.peer, seconds=self._seconds)
            else:
                self._untold[one.reason, one.client] += 1
        if self._untold and self._clock() - self._told >= _QUIET:
            (reason, client), number = self._untold.most_common(1)[0]
            all_ended = self._untold.total()
            _log.warning(
                "connections closed", reason=reason.value, client=client.name, of=number, all=all_ended
            )
            self._untold.clear()
            self._told = self._clock()


def _how_dispensable(one: _Connection) -> tuple[bool, float]:
    return (False, one.seen.since) if one.idle_since is None else (True, -one.idle_since)


def _has_settled(connections: Sequence[_Connection], now: float) -> bool:
    since = connections[-1].idle_since if connections else None
    return since is not None and now - since >= _SETTLED


def _age(connections: Sequence[_Connection]) -> float:
    since = connections[-1].idle_since if connections else None
    return -math.inf if since is None else -since


def _descriptors() -> list[str]:
    try:
        return os.listdir("/proc/self/fd")  # noqa: PTH208 -- a thousand names, four times a second
    except OSError:
        return []


def _sockets(ports: Collection[int]) -> Iterator[tuple[int, socket.socket, int]]:
    """Yield copies of the sockets of this process that are bound to a port; each is closed when the next one is asked for."""
    for name in _descriptors():
        descriptor = int(name)
        with suppress(OSError), _copy(descriptor) as connection:
            name_of_ours = connection.getsockname()
            if isinstance(name_of_ours, tuple) and name_of_ours[1] in ports:
                yield descriptor, connection, name_of_ours[1]


def _copy(descriptor: int) -> socket.socket:
    # The web server, to which it belongs, may close it at any time, and anything else may have its number then; but not the copy's.
    copy = os.dup(descriptor)
    try:
        # Whether it is a socket at all, the system says; of which family, the names of its ends.
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _end(connection: socket.socket, *, at_once: bool) -> None:
    if at_once:
        # Or what is not sent would stay in memory for as long as the client does not read it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
