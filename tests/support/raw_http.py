"""HTTP as bytes on a socket, for requests that no client library sends."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tests.support.client import Response

# Seconds.
_TIMEOUT = 20


def exchange(address: tuple[str, int], sent: bytes, timeout: float = _TIMEOUT) -> bytes:
    """Send bytes and return all bytes received until the server closes the connection.

    The server may close it before all bytes are sent.

    Raises:
        TimeoutError: the server does not close it in time.
    """
    received = b""
    with socket.create_connection(address, timeout=timeout) as connection:
        try:
            connection.sendall(sent)
            while chunk := connection.recv(1 << 16):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def parse_responses(received: bytes, methods: Sequence[str]) -> list[Response]:
    """Split received bytes into responses, at most one for each method.

    Stricter than clients: bytes beyond the responses, repeated headers and transfer encodings are errors.
    """
    responses = []
    for method in methods:
        if not received:
            break
        response, received = _first_response(received, method)
        responses.append(response)
    assert not received, f"{received[:200]!r} is not part of a response"
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
        assert name.lower() not in headers, f"{name} is repeated"
        headers[name.lower()] = value.strip()
    assert "transfer-encoding" not in headers, headers
    if int(status) == 304 or method == "HEAD":
        return Response(int(status), headers, b""), rest
    length = int(headers["content-length"])
    assert len(rest) >= length, f"{length} bytes were promised, {len(rest)} came"
    return Response(int(status), headers, rest[:length]), rest[length:]
