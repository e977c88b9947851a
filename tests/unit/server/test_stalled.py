"""Real connections, with both ends in this process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nixery.server.stalled import StalledConnections

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


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stalled(pair: Pair, clock: Clock) -> StalledConnections:
    return StalledConnections(pair.port, SECONDS, clock)


def test_who_takes_nothing_is_cut_off(pair: Pair, clock: Clock, stalled: StalledConnections) -> None:
    pair.send()
    assert stalled.look() == []
    clock.now = SECONDS - 1
    assert stalled.look() == []
    clock.now = SECONDS
    assert stalled.look() == [pair.name]
    with pytest.raises(BrokenPipeError):
        pair.server.send(b"more")
    pair.server.close()
    # What was not sent is not kept for him.
    with pytest.raises(ConnectionResetError):
        pair.read(MUCH)


def test_who_takes_some_begins_anew(pair: Pair, clock: Clock, stalled: StalledConnections) -> None:
    pair.send()
    for _ in range(4):
        assert stalled.look() == []
        clock.now += SECONDS - 1
        pair.read(2 * 1024 * 1024)
        pair.send()
    assert stalled.look() == []
    clock.now += SECONDS
    assert stalled.look() == [pair.name]


def test_to_whom_nothing_is_to_be_sent(pair: Pair, clock: Clock, stalled: StalledConnections) -> None:
    for _ in range(3):
        assert stalled.look() == []
        clock.now += SECONDS
    pair.server.send(b"all of it is acknowledged")
    time.sleep(0.1)
    for _ in range(3):
        assert stalled.look() == []
        clock.now += SECONDS


def test_another_port_is_somebody_elses(pair: Pair, clock: Clock) -> None:
    stalled = StalledConnections(pair.port, SECONDS, clock)
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
    pair: Pair, clock: Clock, stalled: StalledConnections
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
            assert stalled.look() == [f"{host}:{port}"]


def test_no_descriptor_is_left(pair: Pair, stalled: StalledConnections) -> None:
    pair.send()
    read, write = os.pipe()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        stalled.look()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(read)
        os.close(write)
