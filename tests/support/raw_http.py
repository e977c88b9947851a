"""HTTP as bytes on a socket, for what no client library would send."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tests.support.client import Response

# Seconds. Nothing here waits for Nix for longer than a moment.
_PATIENCE = 20


def exchange(address: tuple[str, int], sent: bytes, patience: float = _PATIENCE) -> bytes:
    """Send bytes, return all that comes back until the server closes the connection.

    A server may close while it is still being sent to; what it said before counts.

    Raises:
        TimeoutError: it does not close in time.
    """
    received = b""
    with socket.create_connection(address, timeout=patience) as connection:
        try:
            connection.sendall(sent)
            while chunk := connection.recv(1 << 16):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def parse_responses(received: bytes, methods: Sequence[str]) -> list[Response]:
    """Take apart what a server sent, one response for each method at most.

    Stricter than a client: anything in it that is no part of a response with a length is an error.
    """
    responses = []
    for method in methods:
        if not received:
            break
        response, received = _first_response(received, method)
        responses.append(response)
    assert not received, f"{received[:200]!r} belongs to no response"
    return responses


def _first_response(received: bytes, method: str) -> tuple[Response, bytes]:
    head, separator, rest = received.partition(b"\r\n\r\n")
    assert separator, f"{received[:200]!r} has no end"
    status_line, *lines = head.split(b"\r\n")
    version, status, _ = status_line.split(b" ", 2)
    assert version in (b"HTTP/1.0", b"HTTP/1.1"), status_line
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        assert colon, line
        assert name.lower() not in headers, f"{name} comes twice"
        headers[name.lower()] = value.strip()
    assert "transfer-encoding" not in headers, headers
    if int(status) == 304 or method == "HEAD":
        return Response(int(status), headers, b""), rest
    length = int(headers["content-length"])
    assert len(rest) >= length, f"{length} bytes were promised, {len(rest)} came"
    return Response(int(status), headers, rest[:length]), rest[length:]
