"""Real connections, with both ends in this process."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from nixery.server.app import send_body
from nixery.server.clients import Address, Clients, peer_key
from nixery.server.connections import Backpressure, ConnectionBounds, Connections, Ended, Reason, _taken
from nixery.server.http import Request, StreamResponse
from nixery.server.observation import Observation
from nixery.telemetry.metrics import RequestCounts

SECONDS = 60.0

# More than the buffers of both ends hold, in bytes.
MUCH = 16 * 1024 * 1024


class Pair:
    """A server's end and a client's end of a connection."""

    def __init__(self) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.port: int = listener.getsockname()[1]
            self.client = socket.create_connection(("127.0.0.1", self.port))
            self.server, _ = listener.accept()
        self.server.setblocking(False)
        self.client.settimeout(10)

    def send(self) -> None:
        """Send more than the client reads."""
        with suppress(BlockingIOError):
            while True:
                self.server.send(bytes(1 << 16))

    def read(self, size: int) -> None:
        while size > 0:
            size -= len(self.client.recv(min(size, 1 << 16)))
        time.sleep(0.1)  # for the acknowledgement

    @property
    def name(self) -> str:
        host, port = self.client.getsockname()
        return f"{host}:{port}"


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.client.close()
    pair.server.close()


class Requests(Observation):
    """Requests in progress, as the test sets them; records those that were abandoned."""

    def __init__(self, clients: Clients | None = None) -> None:
        super().__init__(RequestCounts(), clients)
        self.asking: list[str] = []
        self.abandoned: list[str] = []

    def peers(self) -> list[str]:
        return self.asking

    def abandon(self, peers: Collection[str]) -> None:
        self.abandoned += peers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stalled(pair: Pair, clock: Clock) -> Connections:
    return Connections({pair.port: ConnectionBounds(1000, 1000)}, SECONDS, Requests(), clock)


def peers(ended: list[Ended]) -> list[str]:
    return [one.peer for one in ended]


def test_a_client_that_acknowledges_nothing_is_disconnected(
    pair: Pair, clock: Clock, stalled: Connections
) -> None:
    pair.send()
    assert stalled.poll() == []
    clock.now = SECONDS - 1
    assert stalled.poll() == []
    clock.now = SECONDS
    assert peers(stalled.poll()) == [pair.name]
    with pytest.raises(BrokenPipeError):
        pair.server.send(b"more")
    pair.server.close()
    # The server keeps no unsent data for the client.
    with pytest.raises(ConnectionResetError):
        pair.read(MUCH)


def test_an_acknowledgement_restarts_the_timeout(pair: Pair, clock: Clock, stalled: Connections) -> None:
    pair.send()
    for _ in range(4):
        assert stalled.poll() == []
        clock.now += SECONDS - 1
        pair.read(2 * 1024 * 1024)
        pair.send()
    assert stalled.poll() == []
    clock.now += SECONDS
    assert peers(stalled.poll()) == [pair.name]


def test_a_client_without_pending_data_is_not_stalled(pair: Pair, clock: Clock, stalled: Connections) -> None:
    for _ in range(3):
        assert stalled.poll() == []
        clock.now += SECONDS
    pair.server.send(b"all of it is acknowledged")
    time.sleep(0.1)
    for _ in range(3):
        assert stalled.poll() == []
        clock.now += SECONDS


def test_connections_of_other_ports_are_ignored(pair: Pair, clock: Clock) -> None:
    stalled = Connections({pair.port: ConnectionBounds(1000, 1000)}, SECONDS, Requests(), clock)
    other = Pair()
    other.send()
    try:
        assert stalled.poll() == []
        clock.now = SECONDS
        assert stalled.poll() == []
    finally:
        other.client.close()
        other.server.close()


def test_a_reused_descriptor_is_another_connection(pair: Pair, clock: Clock, stalled: Connections) -> None:
    pair.send()
    assert stalled.poll() == []
    number = pair.server.fileno()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", pair.port))
        listener.listen()
        with socket.create_connection(("127.0.0.1", pair.port)) as client:
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            pair.client.close()
            with accepted:
                os.dup2(accepted.fileno(), number)
            pair.send()
            clock.now = SECONDS
            assert stalled.poll() == []
            clock.now = 2 * SECONDS
            host, port = client.getsockname()
            assert peers(stalled.poll()) == [f"{host}:{port}"]


def test_polling_leaks_no_descriptor(pair: Pair, stalled: Connections) -> None:
    pair.send()
    read, write = os.pipe()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        stalled.poll()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(read)
        os.close(write)


class Crowd:
    """Connections from different addresses of this machine to one port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.requests = Requests()
        self.accepted: list[socket.socket] = []
        self._listener = stack.enter_context(socket.socket())
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.port: int = self._listener.getsockname()[1]

    def connect(self, host: str, number: int = 1) -> list[tuple[str, socket.socket]]:
        made = []
        for _ in range(number):
            client = self._bound(host)
            client.connect(("127.0.0.1", self.port))
            accepted, (_, port) = self._listener.accept()
            self.accepted.append(self._stack.enter_context(accepted))
            client.setblocking(False)
            made.append((f"{host}:{port}", client))
            time.sleep(0.01)  # idle for longer than the next one
        return made

    def _bound(self, host: str) -> socket.socket:
        while True:
            client = self._stack.enter_context(socket.socket())
            client.bind((host, 0))
            # The kernel may choose the port of the listener, and the poll would count both ends.
            if client.getsockname()[1] != self.port:
                return client

    def connections(self, total: int, per_client: int, *trusted: str) -> Connections:
        self.requests.clients = Clients([ip_network(network) for network in trusted])
        return Connections({self.port: ConnectionBounds(total, per_client)}, SECONDS, self.requests)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with ExitStack() as stack:
        yield Crowd(stack)


def keys(names: list[str]) -> set[tuple[Address | None, str]]:
    return set(map(peer_key, names))


def names(made: list[tuple[str, socket.socket]]) -> list[str]:
    return [name for name, _ in made]


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_beyond_the_limit_of_a_client_the_longest_idle_connections_are_ended_first(crowd: Crowd) -> None:
    greedy = crowd.connect("127.0.0.2", 10)
    modest = crowd.connect("127.0.0.3", 2)
    ended = crowd.connections(100, 4).poll()
    assert peers(ended) == names(greedy)[:6]
    assert {(one.reason, one.client.name) for one in ended} == {(Reason.SHARE, "127.0.0.2")}
    assert [closed(client) for _, client in greedy] == [True] * 6 + [False] * 4
    assert not any(closed(client) for _, client in modest)


def test_connections_with_a_request_are_ended_last(crowd: Crowd) -> None:
    greedy = crowd.connect("127.0.0.2", 6)
    connections = crowd.connections(100, 3)
    busy = names(greedy)[:2]
    assert peers(connections.poll(keys(busy))) == names(greedy)[2:5]
    again = crowd.connect("127.0.0.2", 2)
    everything = names(greedy) + names(again)
    # Then the newest connections.
    assert peers(connections.poll(keys(everything))) == [names(again)[1], names(again)[0]]


def test_beyond_the_total_the_client_with_the_most_connections_loses_one(crowd: Crowd) -> None:
    oldest = crowd.connect("127.0.0.9", 1)
    greedy = crowd.connect("127.0.0.2", 6)
    modest = crowd.connect("127.0.0.3", 2)
    ended = crowd.connections(6, 6).poll()
    assert peers(ended) == names(greedy)[:3]
    assert {one.reason for one in ended} == {Reason.TOTAL}
    assert not any(closed(client) for _, client in [*oldest, *modest])


def test_idle_connections_are_ended_before_busy_ones(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = crowd.connect("127.0.0.2", 4)
    idle = crowd.connect("127.0.0.3", 2)
    connections = crowd.connections(5, 5)
    # A request may arrive on it at any moment, and another client has more connections.
    assert peers(connections.poll(keys(names(greedy)))) == [names(greedy)[3]]
    crowd.connect("127.0.0.4", 1)
    monkeypatch.setattr("nixery.server.connections._KEEP_ALIVE_AFTER", 0.0)
    assert peers(connections.poll(keys(names(greedy)))) == [names(idle)[0]]


async def test_requests_of_disconnected_clients_are_abandoned(crowd: Crowd) -> None:
    ((name, client), (other, _)) = crowd.connect("127.0.0.2", 2)
    crowd.requests.asking = [name, other]
    # Checked at each poll.
    running = asyncio.ensure_future(crowd.connections(1, 100).run())
    try:
        client.close()
        crowd.accepted[0].close()
        async with asyncio.timeout(30):
            while not crowd.requests.abandoned:  # noqa: ASYNC110 -- the kernel sets no event
                await asyncio.sleep(0.05)
        assert set(crowd.requests.abandoned) == {name}
    finally:
        running.cancel()


def test_a_trusted_proxy_has_no_limit_per_client(crowd: Crowd) -> None:
    crowd.connect("127.0.0.2", 6)
    assert crowd.connections(6, 2, "127.0.0.2/32").poll() == []
    assert len(crowd.connections(4, 2, "127.0.0.2/32").poll()) == 2


async def test_a_surplus_is_ended_while_the_monitor_runs(crowd: Crowd) -> None:
    connections = crowd.connections(100, 4)
    running = asyncio.ensure_future(connections.run())
    try:
        greedy = crowd.connect("127.0.0.2", 10)
        async with asyncio.timeout(30):
            while sum(closed(client) for _, client in greedy) < 6:  # noqa: ASYNC110 -- the kernel sets no event
                await asyncio.sleep(0.05)
    finally:
        running.cancel()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set after a few polls of the socket of a body in progress."""
    event, looks = asyncio.Event(), itertools.count(1)

    def look(descriptor: int, cookie: bytes) -> int | None:
        if next(looks) > 3:
            event.set()
        return _taken(descriptor, cookie)

    monkeypatch.setattr("nixery.server.connections._taken", look)
    return event


async def test_a_body_is_sent_no_faster_than_the_kernel_takes_it(pair: Pair, looked: asyncio.Event) -> None:
    backpressure = Backpressure(pair.name)
    size = 1 << 20
    assert await backpressure.admit(size)
    assert await backpressure.admit(size)
    more = asyncio.ensure_future(backpressure.admit(size))
    await looked.wait()
    assert not more.done()
    sent = 0
    while sent < size:
        with suppress(BlockingIOError):
            sent += pair.server.send(bytes(size - sent))
        with suppress(TimeoutError):
            pair.client.recv(size)
    assert await more


async def test_a_body_ends_with_its_connection(pair: Pair, looked: asyncio.Event) -> None:
    backpressure = Backpressure(pair.name)
    assert await backpressure.admit(1 << 20)
    assert await backpressure.admit(1 << 20)
    more = asyncio.ensure_future(backpressure.admit(1 << 20))
    await looked.wait()
    assert not more.done()
    pair.server.close()
    assert not await more


async def test_a_body_of_an_unknown_connection_is_not_delayed() -> None:
    backpressure = Backpressure("192.0.2.1:1")
    assert all([await backpressure.admit(1 << 20) for _ in range(100)])


async def test_a_client_that_has_the_last_piece_may_close_its_connection(pair: Pair) -> None:
    class Kernel:
        """A ``Transport`` of a web server without buffers; its client closes after the last piece."""

        async def send_bytes(self, data: bytes, /) -> None:
            sent = 0
            while sent < len(data):
                with suppress(BlockingIOError):
                    sent += pair.server.send(data[sent:])
                pair.client.recv(len(data))
            if data.endswith(b"."):
                pair.client.close()
                pair.server.close()

        def response_stream(self, *_: object) -> Kernel:
            return self

    ended = False

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal ended
        for _ in range(4):
            yield bytes(1 << 19)
        yield b"."
        ended = True

    response = StreamResponse(200, None, pieces)
    request = Request("GET", "/")
    await send_body(request, response, pieces(), [], Kernel(), Backpressure(pair.name))  # type: ignore[arg-type]
    assert ended


def test_a_silent_connection_ends_where_the_port_has_such_a_limit(pair: Pair, clock: Clock) -> None:
    requests = Requests()
    unlimited = Connections({pair.port: ConnectionBounds(9, 9)}, SECONDS, requests, clock)
    limited = Connections({pair.port: ConnectionBounds(9, 9, idle=0.0)}, SECONDS, requests, clock)
    patient = Connections({pair.port: ConnectionBounds(9, 9, idle=3600.0)}, SECONDS, requests, clock)
    assert unlimited.poll() == patient.poll() == []
    # A request that waits for its answer, for example for a build, is silent too.
    assert limited.poll({peer_key(pair.name)}) == []
    assert [(one.peer, one.reason) for one in limited.poll()] == [(pair.name, Reason.IDLE)]
    assert pair.client.recv(1) == b""
