"""End connections whose clients have stopped reading, and connections beyond the limits.

The web server does neither: it waits for a slow client without a timeout, and accepts connections up to its
own limit, from any client. So its limit is higher than that of this module, which ends the surplus:
the server accepts a new connection, and closes one that serves no request.

The kernel's ``TCP_USER_TIMEOUT`` does not fit the first purpose: for a client that reads slowly, its clock
runs while the client's window is smaller than the next piece to send. So this module polls the count of
acknowledged bytes. Only Linux reports it (tcp(7), ``TCP_INFO``); elsewhere no connection is ended.

The web server also accepts pieces of a body without limit, whether or not the client reads them;
``Backpressure`` counts how many of them the kernel has taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import math
import os
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import structlog

from nixery.request_context import Client
from nixery.server.clients import Address, peer_key
from nixery.server.observation import Observation

# Polls within a client's timeout.
_POLLS = 10

# Seconds between two counts of the open descriptors, each of which takes a tenth of the time of polling their
# connections; and between two polls of the connections, while one address may have too many but the total is
# in bounds.
_COUNT_EVERY = 0.25
_POLL_EVERY = 1.0

# The share of the limit from which on every count leads to a poll.
_BUSY = 0.75

# Seconds between two log lines about connections beyond the limits.
_LOG_EVERY = 10.0

# linux/tcp.h, struct tcp_info: the offset of tcpi_bytes_acked, which has 64 bits. tcpi_notsent_bytes has 32
# bits, and so have tcpi_unacked, the packets in flight, and the milliseconds since data was sent and since
# data came.
_BYTES_ACKED = 120
_NOT_SENT = 144
_UNACKED = 24
_LAST_SENT = 44
_LAST_RECEIVED = 52
_INFO_SIZE = 192

# States in tcp_info: an established connection, and one whose client has shut down its sending side.
_ESTABLISHED, _CLOSE_WAIT = 1, 8

# asm-generic/socket.h: an id that is unique to a socket, unlike a descriptor, which is reused.
_SO_COOKIE = 57

# asm-generic/socket.h: attaches a program (classic BPF) that chooses among sockets that listen on the same port. The
# program is one instruction, linux/filter.h, BPF_RET | BPF_K: it returns a constant.
_SO_ATTACH_REUSEPORT_CBPF = 51
_BPF_RETURN = 0x06

# Seconds after which a connection without a request counts as kept alive; before, its request may not
# have arrived yet.
_KEEP_ALIVE_AFTER = 2.0

# Bytes of a body that the web server may hold in addition to those that it got before its socket was found:
# about a piece of a blob. And seconds between two polls of a socket with a full buffer, at first and at most.
_AHEAD = 256 * 1024
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25

_Key = tuple[Address | None, str]

_log = structlog.get_logger("nixery.server")


class Reason(Enum):
    """Why a connection is ended."""

    STALLED = "stalled"
    IDLE = "idle"
    SHARE = "too many connections from one address"
    TOTAL = "too many connections"


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Limits on the connections to a port.

    Attributes:
        total: at the same time.
        per_client: of them, those of one client; trusted proxies have no such limit.
        idle: seconds for which a connection may neither send nor receive anything, unless one of its requests
            waits for its answer; ``None`` if the web server bounds that time itself, which it does for HTTP/1.1
            only.
    """

    total: int
    per_client: int
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that was ended: address and port of the peer, its client, and the reason."""

    peer: str
    client: Client
    reason: Reason


@dataclass(slots=True)
class _Seen:
    """The state of a connection that is kept between polls.

    Attributes:
        peer: address and port of the peer, and the same by ``peer_key``.
        host: its address.
        since: when a poll first saw it; unique.
        acknowledged: bytes, and when their count last changed; ``None`` if no data awaits acknowledgement.
    """

    peer: str
    key: _Key
    host: str
    since: int
    acknowledged: int | None = None
    waiting_since: float = 0.0


@dataclass(slots=True)
class _Connection:
    """A connection at the time of a poll.

    Attributes:
        idle_since: seconds of the system's clock; ``None`` while it serves a request.
    """

    descriptor: int
    cookie: bytes
    seen: _Seen
    idle_since: float | None


class Connections:
    """Bounds the connections of this process to its ports.

    If one client has too many: ends those without a request, the longest idle ones first, and then the newest
    ones. If all together are too many: ends a kept-alive one of the client with the most; if no client has
    any, the next connection that the client with the most opens. A request whose connection is closed stops
    waiting.

    Args:
        ports: the listening ports, with their limits.
        seconds: the timeout for a client that acknowledges no data.
        observation: the requests in progress, and which clients they are from.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        ports: Mapping[int, ConnectionBounds],
        seconds: float,
        observation: Observation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ports = ports
        self._seconds = seconds
        self._observation = observation
        self._clients = observation.clients
        self._connected: frozenset[_Key] = frozenset()
        self._clock = clock
        self._seen: Mapping[bytes, _Seen] = {}
        self._number = 0
        self._logged = -_LOG_EVERY
        self._unlogged: Counter[tuple[Reason, Client]] = Counter()

    async def run(self) -> None:
        """Poll until it is cancelled."""
        period = self._seconds / _POLLS
        # With fewer descriptors than this, no limit can be exceeded.
        few = min(min(bounds.per_client, bounds.total) for bounds in self._ports.values())
        many = max(bounds.total for bounds in self._ports.values()) * _BUSY
        polled = self._clock()
        while True:
            await asyncio.sleep(min(_COUNT_EVERY, period))
            number, age = len(_descriptors()), self._clock() - polled
            # Before the poll, so that each of these requests has a connection in it. And on the event loop,
            # which changes them.
            answering = {peer_key(peer): peer for peer in self._observation.peers()}
            if (
                age >= period
                or number > many
                or (age >= _POLL_EVERY and (number > few or len(answering) > few))
            ):
                polled = self._clock()
                self._log_ended(await asyncio.to_thread(self.poll, answering.keys()))
                if number:  # 0: unknown
                    gone = answering.keys() - self._connected
                    self._observation.abandon({answering[key] for key in gone})

    def poll(self, answering: Collection[_Key] = ()) -> list[Ended]:
        """Poll all connections once; return those that were ended.

        Args:
            answering: peers of the requests in progress, by ``peer_key``.
        """
        now = self._clock()
        seen: dict[bytes, _Seen] = {}
        on_port: dict[int, list[_Connection]] = {port: [] for port in self._ports}
        ended = []
        for descriptor, connection, port in _sockets(self._ports):
            # A connection that closes during the poll needs no ending.
            with suppress(OSError):
                found = self._inspect(descriptor, connection, answering, now)
                if found is None or found.cookie in seen:  # a copy that another thread has at the moment
                    continue
                seen[found.cookie] = found.seen
                waited = now - found.seen.waiting_since
                if found.seen.acknowledged is not None and waited >= self._seconds:
                    _end(connection, at_once=True)
                    ended.append(self._ended(found, Reason.STALLED))
                elif self._is_idle(found, self._ports[port]):
                    _end(connection, at_once=True)
                    ended.append(self._ended(found, Reason.IDLE))
                else:
                    on_port[port].append(found)
        self._seen = seen
        self._connected = frozenset(one.key for one in seen.values())
        for port, connections in on_port.items():
            bounds = self._ports[port]
            if len(connections) > min(bounds.per_client, bounds.total):
                ended += self._end_surplus(connections, bounds)
        return ended

    @staticmethod
    def _is_idle(found: _Connection, bounds: ConnectionBounds) -> bool:
        # Without such a limit, a client of HTTP/2 could keep files open by not accepting the bodies of its streams.
        if bounds.idle is None or found.idle_since is None:
            return False
        return time.monotonic() - found.idle_since >= bounds.idle

    def _inspect(
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
                # Not by duration: polls of two connections may be far apart if another process has the
                # processor.
                idle_since = time.monotonic() - min(sent, received) / 1000
        return _Connection(descriptor, cookie, seen, idle_since)

    def _end_surplus(self, connections: Sequence[_Connection], bounds: ConnectionBounds) -> Iterator[Ended]:
        of_client: dict[Client, list[_Connection]] = {}
        for connection in connections:
            of_client.setdefault(self._clients.client_of_host(connection.seen.host), []).append(connection)
        for theirs in of_client.values():
            # Sorted so that the first to end come last: idle ones, the longest idle one at the very end, and
            # before them the newest.
            theirs.sort(key=_eviction_key)
        total, now = len(connections), time.monotonic()
        for theirs in of_client.values():
            while len(theirs) > bounds.per_client and not self._clients.trusts_host(theirs[0].seen.host):
                total -= 1
                yield from self._end_one(theirs.pop(), Reason.SHARE)
        while total > bounds.total:
            # A connection whose request is just arriving must not be ended in favour of a client whose many
            # connections are all busy. So choose the client with the most among those with a kept-alive
            # connection first, then among all.
            theirs = max(
                of_client.values(), key=lambda some: (_is_kept_alive(some, now), len(some), _age(some))
            )
            total -= 1
            yield from self._end_one(theirs.pop(), Reason.TOTAL)

    def _end_one(self, found: _Connection, reason: Reason) -> Iterable[Ended]:
        with suppress(OSError), _copy(found.descriptor) as connection:
            # By now another socket may have its descriptor.
            if connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) == found.cookie:
                _end(connection, at_once=found.idle_since is None)
                return [self._ended(found, reason)]
        return []

    def _ended(self, found: _Connection, reason: Reason) -> Ended:
        return Ended(found.seen.peer, self._clients.client_of_host(found.seen.host), reason)

    def _log_ended(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            if one.reason is Reason.STALLED:
                _log.info("stalled", client=one.peer, seconds=self._seconds)
            elif one.reason is Reason.IDLE:
                _log.debug("idle", client=one.peer)
            else:
                self._unlogged[one.reason, one.client] += 1
        if self._unlogged and self._clock() - self._logged >= _LOG_EVERY:
            (reason, client), number = self._unlogged.most_common(1)[0]
            all_ended = self._unlogged.total()
            _log.warning(
                "connections closed", reason=reason.value, client=client.name, of=number, all=all_ended
            )
            self._unlogged.clear()
            self._logged = self._clock()


class Backpressure:
    """Waits while the web server holds too much of one body because its client does not read.

    The web server's own call to send a piece returns at once, and the piece stays in memory until the kernel
    takes it. Without a wait, a client that reads nothing would make the server hold the whole body. On
    systems other than Linux, this never waits.

    Args:
        peer: the client's address and port, as the web server writes them.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._socket: tuple[int, bytes] | None = None
        self._is_known = True
        self._given = 0
        self._allowed = 0
        self._before = 0

    async def admit(self, size: int) -> bool:
        """Wait until the web server may get another piece, and count it.

        Call it before each piece rather than after it: a client may close its connection after the last piece
        of a complete body.

        Returns:
            Whether to send the piece; false if the connection is closed.
        """
        is_open = self._given <= _AHEAD or await self._has_room()
        self._given += size
        return is_open

    async def _has_room(self) -> bool:
        if self._socket is None and self._is_known:
            self._socket = await asyncio.to_thread(_socket_of, peer_key(self._peer))
            taken = None if self._socket is None else _taken(*self._socket)
            self._is_known = taken is not None
            self._before, self._allowed = taken or 0, self._given + _AHEAD
        pause = _SHORTEST_PAUSE
        while self._socket is not None and self._is_known:
            taken = _taken(*self._socket)
            if taken is None:
                return False
            # Until the socket was found, the kernel may have taken any part of the bytes given before.
            if self._given - (taken - self._before) <= self._allowed:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True


def _socket_of(peer: _Key) -> tuple[int, bytes] | None:
    """Return the descriptor of the connection to a peer, and its cookie; ``None`` if there is none."""
    for name in _descriptors():
        with suppress(OSError, ValueError), _copy(descriptor := int(name)) as connection:
            host, port = connection.getpeername()[:2]
            if peer[1] == str(port) and peer_key(f"[{host}]:{port}") == peer:
                return descriptor, connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return None


def _taken(descriptor: int, cookie: bytes) -> int | None:
    """Return how many bytes the kernel has taken for a connection; ``None`` if it is closed."""
    try:
        with _copy(descriptor) as connection:
            if connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) != cookie:
                return None
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
            if len(info) < _INFO_SIZE or info[0] not in {_ESTABLISHED, _CLOSE_WAIT}:
                return None
            (queued,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))
            (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
            return int(acknowledged) + int(queued)
    except OSError:
        return None


def listening_sockets(port: int) -> list[bytes]:
    """Return the cookies of the sockets of this process that listen on a port, by age."""
    cookies = []
    for _, listener, _ in _sockets({port}):
        with suppress(OSError):
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                cookies.append(listener.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))
    return sorted(set(cookies), key=lambda cookie: struct.unpack("=Q", cookie))


def send_new_connections_to_newest(port: int) -> None:
    """Have the kernel give all new connections to a port to the socket that began to listen last.

    Otherwise it spreads them over all sockets that listen on the port, and resets those that wait on a socket when
    that is closed. On systems other than Linux, this does nothing.
    """
    # The kernel numbers the sockets of a port in the order in which they began to listen. Once the older ones are
    # closed, the number is too high, and the kernel ignores the program.
    number = len(listening_sockets(port)) - 1
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RETURN, 0, 0, number), 8)
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    for _, listener, _ in _sockets({port}):
        with suppress(OSError):
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
                return


def _eviction_key(one: _Connection) -> tuple[bool, float]:
    return (False, one.seen.since) if one.idle_since is None else (True, -one.idle_since)


def _is_kept_alive(connections: Sequence[_Connection], now: float) -> bool:
    since = connections[-1].idle_since if connections else None
    return since is not None and now - since >= _KEEP_ALIVE_AFTER


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
            local_address = connection.getsockname()
            if isinstance(local_address, tuple) and local_address[1] in ports:
                yield descriptor, connection, local_address[1]


def _copy(descriptor: int) -> socket.socket:
    # The web server owns the socket and may close it at any time, after which its descriptor may be reused;
    # the copy's is not.
    copy = os.dup(descriptor)
    try:
        # The kernel refuses other descriptors; the addresses of the ends have the family.
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _end(connection: socket.socket, *, at_once: bool) -> None:
    if at_once:
        # Otherwise unsent data would stay in memory until the client reads it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
