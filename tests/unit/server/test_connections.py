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

from nixery.server.app import send_pieces
from nixery.server.clients import Address, Clients, peer_key
from nixery.server.connections import Backpressure, ConnectionBounds, Connections, Ended, Reason, _taken
from nixery.server.http import Request, StreamResponse

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
        """Have more be sent than the client has read."""
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


class NoRequests:
    """Those that are being answered, and who has gone."""

    def __init__(self) -> None:
        self.asking: list[str] = []
        self.gone: list[str] = []

    def peers(self) -> list[str]:
        return self.asking

    def abandon(self, peers: Collection[str]) -> None:
        self.gone += peers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stalled(pair: Pair, clock: Clock) -> Connections:
    return Connections({pair.port: ConnectionBounds(1000, 1000)}, SECONDS, Clients(), NoRequests(), clock)


def peers(ended: list[Ended]) -> list[str]:
    return [one.peer for one in ended]


def test_who_takes_nothing_is_cut_off(pair: Pair, clock: Clock, stalled: Connections) -> None:
    pair.send()
    assert stalled.look() == []
    clock.now = SECONDS - 1
    assert stalled.look() == []
    clock.now = SECONDS
    assert peers(stalled.look()) == [pair.name]
    with pytest.raises(BrokenPipeError):
        pair.server.send(b"more")
    pair.server.close()
    # What was not sent is not kept for him.
    with pytest.raises(ConnectionResetError):
        pair.read(MUCH)


def test_who_takes_some_begins_anew(pair: Pair, clock: Clock, stalled: Connections) -> None:
    pair.send()
    for _ in range(4):
        assert stalled.look() == []
        clock.now += SECONDS - 1
        pair.read(2 * 1024 * 1024)
        pair.send()
    assert stalled.look() == []
    clock.now += SECONDS
    assert peers(stalled.look()) == [pair.name]


def test_to_whom_nothing_is_to_be_sent(pair: Pair, clock: Clock, stalled: Connections) -> None:
    for _ in range(3):
        assert stalled.look() == []
        clock.now += SECONDS
    pair.server.send(b"all of it is acknowledged")
    time.sleep(0.1)
    for _ in range(3):
        assert stalled.look() == []
        clock.now += SECONDS


def test_another_port_is_somebody_elses(pair: Pair, clock: Clock) -> None:
    stalled = Connections({pair.port: ConnectionBounds(1000, 1000)}, SECONDS, Clients(), NoRequests(), clock)
    other = Pair()
    other.send()
    try:
        assert stalled.look() == []
        clock.now = SECONDS
        assert stalled.look() == []
    finally:
        other.client.close()
        other.server.close()


def test_a_number_that_is_given_again_is_another_connection(
    pair: Pair, clock: Clock, stalled: Connections
) -> None:
    pair.send()
    assert stalled.look() == []
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
            assert stalled.look() == []
            clock.now = 2 * SECONDS
            host, port = client.getsockname()
            assert peers(stalled.look()) == [f"{host}:{port}"]


def test_no_descriptor_is_left(pair: Pair, stalled: Connections) -> None:
    pair.send()
    read, write = os.pipe()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        stalled.look()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(read)
        os.close(write)


class Crowd:
    """Connections from different addresses of this machine to one port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.requests = NoRequests()
        self.accepted: list[socket.socket] = []
        self._listener = stack.enter_context(socket.socket())
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(100)
        self.port: int = self._listener.getsockname()[1]

    def connect(self, host: str, number: int = 1) -> list[tuple[str, socket.socket]]:
        made = []
        for _ in range(number):
            client = self._stack.enter_context(socket.socket())
            client.bind((host, 0))
            client.connect(("127.0.0.1", self.port))
            accepted, (_, port) = self._listener.accept()
            self.accepted.append(self._stack.enter_context(accepted))
            client.setblocking(False)
            made.append((f"{host}:{port}", client))
            time.sleep(0.01)  # idle for longer than the next one
        return made

    def connections(self, total: int, per_client: int, *trusted: str) -> Connections:
        clients = Clients([ip_network(network) for network in trusted])
        return Connections({self.port: ConnectionBounds(total, per_client)}, SECONDS, clients, self.requests)


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


def test_too_many_of_one_address_are_ended_the_longest_idle_first(crowd: Crowd) -> None:
    greedy = crowd.connect("127.0.0.2", 10)
    modest = crowd.connect("127.0.0.3", 2)
    ended = crowd.connections(100, 4).look()
    assert peers(ended) == names(greedy)[:6]
    assert {(one.reason, one.client.name) for one in ended} == {(Reason.SHARE, "127.0.0.2")}
    assert [closed(client) for _, client in greedy] == [True] * 6 + [False] * 4
    assert not any(closed(client) for _, client in modest)


def test_what_a_request_needs_goes_last(crowd: Crowd) -> None:
    greedy = crowd.connect("127.0.0.2", 6)
    connections = crowd.connections(100, 3)
    busy = names(greedy)[:2]
    assert peers(connections.look(keys(busy))) == names(greedy)[2:5]
    again = crowd.connect("127.0.0.2", 2)
    everything = names(greedy) + names(again)
    # Then those that came last.
    assert peers(connections.look(keys(everything))) == [names(again)[1], names(again)[0]]


def test_too_many_in_all_are_ended_where_there_are_the_most(crowd: Crowd) -> None:
    oldest = crowd.connect("127.0.0.9", 1)
    greedy = crowd.connect("127.0.0.2", 6)
    modest = crowd.connect("127.0.0.3", 2)
    ended = crowd.connections(6, 6).look()
    assert peers(ended) == names(greedy)[:3]
    assert {one.reason for one in ended} == {Reason.TOTAL}
    assert not any(closed(client) for _, client in [*oldest, *modest])


def test_what_is_kept_for_later_gives_way_before_what_is_at_work(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = crowd.connect("127.0.0.2", 4)
    idle = crowd.connect("127.0.0.3", 2)
    connections = crowd.connections(5, 5)
    # A request may come on it any moment, and somebody else has more.
    assert peers(connections.look(keys(names(greedy)))) == [names(greedy)[3]]
    crowd.connect("127.0.0.4", 1)
    monkeypatch.setattr("nixery.server.connections._SETTLED", 0.0)
    assert peers(connections.look(keys(names(greedy)))) == [names(idle)[0]]


async def test_requests_whose_clients_have_gone_are_told(crowd: Crowd) -> None:
    ((name, client), (other, _)) = crowd.connect("127.0.0.2", 2)
    crowd.requests.asking = [name, other]
    # Looked at each time.
    running = asyncio.ensure_future(crowd.connections(1, 100).run())
    try:
        client.close()
        crowd.accepted[0].close()
        async with asyncio.timeout(30):
            while not crowd.requests.gone:  # noqa: ASYNC110 -- the kernel sets no event
                await asyncio.sleep(0.05)
        assert set(crowd.requests.gone) == {name}
    finally:
        running.cancel()


def test_a_proxy_has_as_many_as_there_are(crowd: Crowd) -> None:
    crowd.connect("127.0.0.2", 6)
    assert crowd.connections(6, 2, "127.0.0.2/32").look() == []
    assert len(crowd.connections(4, 2, "127.0.0.2/32").look()) == 2


async def test_a_crowd_is_noticed_while_it_runs(crowd: Crowd) -> None:
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
    """Set after a few looks at the socket of a body that is being sent."""
    event, looks = asyncio.Event(), itertools.count(1)

    def look(descriptor: int, cookie: bytes) -> int | None:
        if next(looks) > 3:
            event.set()
        return _taken(descriptor, cookie)

    monkeypatch.setattr("nixery.server.connections._taken", look)
    return event


async def test_the_web_server_gets_no_more_of_a_body_than_the_kernel_takes(
    pair: Pair, looked: asyncio.Event
) -> None:
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


async def test_a_connection_that_cannot_be_found_is_not_waited_for() -> None:
    backpressure = Backpressure("192.0.2.1:1")
    assert all([await backpressure.admit(1 << 20) for _ in range(100)])


async def test_a_client_that_has_the_last_piece_may_close_its_connection(pair: Pair) -> None:
    class Kernel:
        """A ``Transport`` of a web server that holds nothing; its client closes after the last piece."""

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
    await send_pieces(request, response, pieces(), [], Kernel(), Backpressure(pair.name))  # type: ignore[arg-type]
    assert ended
