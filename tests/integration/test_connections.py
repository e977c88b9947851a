"""Slow and silent clients on real sockets: how much memory they cost, and when the server disconnects them."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import wait_until
from tests.support.server import Server

# Seconds after which the server closes a connection without a complete request, with a margin.
_IDLE = 30
_MORE = 10

# Bytes of memory that a slow reader may cost: a buffer of the web server, and the part of the file read for
# it.
_PER_READER = 400 * 1024
_READERS = 100

# Seconds that the server waits for the body of a request.
_BODY = 10

# Seconds after which the server disconnects a client that reads nothing.
_SEND_TIMEOUT = 3

Connect = Callable[[bytes], socket.socket]


@pytest.fixture
def connections(start_server: StartServer) -> Iterator[tuple[Server, Connect]]:
    # All connections are from one address here.
    server = start_server(NIXERY_MAX_CONNECTIONS_PER_CLIENT="1000")
    assert server.client.get("/v2/").status == 200
    with ExitStack() as stack:

        def connect(sent: bytes) -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((server.client.host, server.port))
            connection.sendall(sent)
            connection.setblocking(False)
            return connection

        yield server, connect


def memory(server: Server) -> int:
    lines = (Path("/proc") / str(server.process.pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def is_closed(connection: socket.socket, sent: bytes = b"") -> bool:
    try:
        if sent:
            connection.send(sent)
        while chunk := connection.recv(1 << 16):
            del chunk
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_silent_clients_are_disconnected(connections: tuple[Server, Connect]) -> None:
    server, connect = connections
    before = memory(server)
    silent = [connect(b"") for _ in range(200)]
    kept = [connect(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(50)]
    trickling = [connect(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n") for _ in range(50)]
    time.sleep(1)
    assert memory(server) - before < 300 * 64 * 1024
    assert not any(map(is_closed, [*silent, *kept, *trickling]))
    assert server.client.get("/v2/").status == 200

    def all_are_closed() -> bool:
        time.sleep(0.5)
        # Single header fields do not reset the timeout: it covers the complete request.
        slow = [is_closed(connection, b"X: y\r\n") for connection in trickling]
        return all([*slow, *map(is_closed, silent), *map(is_closed, kept)])

    wait_until(all_are_closed, "silent clients are disconnected", _IDLE + _MORE)


def store(server: Server, digest: str, content: bytes) -> None:
    path = server.blob_path(f"sha256:{digest}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_name(f"{digest}.size").write_text(str(len(content)))


def read_all(connection: socket.socket, size: float = float("inf")) -> int:
    received = 0
    while received <= size and (chunk := connection.recv(1 << 16)):
        received += len(chunk)
    return received


def test_a_stalled_reader_is_disconnected_and_a_slow_one_is_not(start_server: StartServer) -> None:
    server = start_server(NIXERY_SEND_TIMEOUT=str(_SEND_TIMEOUT))
    content = os.urandom(1 << 20) * 50
    digest = hashlib.sha256(content).hexdigest()
    store(server, digest, content)
    request = f"GET /v2/a/blobs/sha256:{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    address = (server.client.host, server.port)
    with socket.socket() as stopped, socket.socket() as slow, socket.socket() as idle:
        for connection in (stopped, slow, idle):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(_SEND_TIMEOUT)
            connection.connect(address)
        stopped.sendall(request)
        slow.sendall(request)
        received = 0
        begin = time.monotonic()
        # About 10 kB a second, which the kernel accepts in parts.
        while time.monotonic() - begin < 4 * _SEND_TIMEOUT:
            received += len(slow.recv(1000))
            time.sleep(0.1)
        assert '"stalled"' in server.log
        host, port = stopped.getsockname()
        assert [f"{host}:{port}" in line for line in server.log.splitlines() if '"stalled"' in line] == [True]
        with pytest.raises(ConnectionResetError):
            read_all(stopped)
        # An idle connection has another time-out.
        idle.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        # The slow client lost nothing, and may read the rest quickly.
        received += read_all(slow, len(content) - received)
        assert received > len(content)


def test_slow_readers_cost_no_more_than_a_buffer(connections: tuple[Server, Connect]) -> None:
    server, connect = connections
    content = os.urandom(1 << 20) * 50
    digest = hashlib.sha256(content).hexdigest()
    store(server, digest, content)
    before = memory(server)
    request = f"GET /v2/a/blobs/sha256:{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    slow = [connect(request) for _ in range(_READERS)]
    for _ in range(3):
        time.sleep(1)
        for reader in slow:
            assert len(reader.recv(1)) == 1
    assert memory(server) - before < _READERS * _PER_READER
    # Other clients do not wait for them.
    assert server.client.blob("a", f"sha256:{digest}").body == content


def test_a_request_body_that_does_not_arrive_times_out(connections: tuple[Server, Connect]) -> None:
    server, connect = connections
    head = b"POST /api/v1/builds HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    late = connect(head)
    late.settimeout(_BODY + _MORE)
    received = b""
    while part := late.recv(65536):
        received += part
    # The server closed the connection; otherwise this would have timed out.
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 10 seconds" in received
    assert server.client.get("/v2/").status == 200
