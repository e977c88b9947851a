"""Pipelined requests, unexpected bodies and other protocols on one connection."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from tests.fuzz.conftest import Target
from tests.support.client import Response
from tests.support.raw_http import exchange, parse_responses
from tests.support.server import HOST

pytestmark = pytest.mark.xdist_group("fuzz")

HOST_LINE = b"Host: registry.example\r\n"
CLOSE = b"Connection: close\r\n\r\n"
VERSION = b"GET /v2/ HTTP/1.1\r\n" + HOST_LINE


def ask(target: Target, sent: bytes, methods: Sequence[str] = ("GET",)) -> list[Response]:
    responses = parse_responses(target.exchange(sent), methods)
    target.check_health()
    return responses


def statuses(responses: Sequence[Response]) -> list[int]:
    return [response.status for response in responses]


def test_pipelined_requests_are_answered_in_their_order(target: Target) -> None:
    blob = f"GET /v2/hello/blobs/{target.blob} HTTP/1.1\r\n".encode() + HOST_LINE
    sent = [
        *(
            VERSION + b"\r\n",
            blob + b"\r\n",
            blob + b"Range: bytes=1-3\r\n\r\n",
            blob.replace(b"GET", b"HEAD", 1) + b"\r\n",
        ),
        *(
            b"DELETE /v2/hello/manifests/x HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
            blob + b"If-None-Match: *\r\n\r\n",
        ),
        VERSION.replace(b"/v2/", b"/v2/UPPER/manifests/x") + CLOSE,
    ]
    methods = ["GET", "GET", "GET", "HEAD", "DELETE", "GET", "GET"]
    responses = ask(target, b"".join(sent), methods)
    assert statuses(responses) == [200, 200, 206, 200, 405, 304, 400]
    assert responses[1].body == target.content
    assert responses[2].body == target.content[1:4]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1;x=y\r\nh\r\n0\r\nTrailer: x\r\n\r\n",
        b"Content-Length: 0\r\n\r\n",
    ],
)
def test_a_body_is_not_taken_for_a_request(target: Target, method: str, body: bytes) -> None:
    sent = VERSION.replace(b"GET", method.encode()) + body + VERSION + CLOSE
    assert statuses(ask(target, sent, [method, "GET"])) == [200, 200]


@pytest.mark.parametrize(
    "ambiguous",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Content-Length: +5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_an_ambiguous_length_is_refused(target: Target, ambiguous: bytes) -> None:
    """Otherwise a proxy and the server could disagree where a request ends (request smuggling)."""
    received = target.exchange(VERSION + ambiguous + b"GET /v2/smuggled HTTP/1.1\r\n" + HOST_LINE + CLOSE)
    target.check_health()
    assert b"smuggled" not in received
    assert received.count(b"HTTP/1.1 ") == 1


def test_an_unfinished_body_delays_no_response(target: Target) -> None:
    for headers in (
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nExpect: 100-continue\r\n",
    ):
        assert statuses(ask(target, VERSION + headers + CLOSE)) == [200]
        put = b"PUT /v2/hello/manifests/latest HTTP/1.1\r\n" + HOST_LINE + headers
        assert statuses(ask(target, put + CLOSE, ["PUT"])) == [405]


def test_a_push_without_expect_is_refused(target: Target) -> None:
    # The server responds and closes before it has read everything; a client that still sends may lose the
    # response.
    sent = (
        b"PUT /v2/hello/manifests/x HTTP/1.1\r\n"
        + HOST_LINE
        + b"Content-Length: 4000000\r\n\r\n"
        + b"x" * 4000000
    )
    assert statuses(ask(target, sent, ["PUT"])) in ([405], [])


@pytest.mark.parametrize(
    "headers",
    [
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: TLS/1.0, HTTP/9\r\n",
    ],
)
def test_protocol_upgrades_are_ignored(target: Target, headers: bytes) -> None:
    assert statuses(
        ask(target, VERSION + headers + b"Connection: Upgrade, HTTP2-Settings, close\r\n\r\n")
    ) == [200]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /v2/ HTTP/1.0", 200),
        (b"GET http://registry.example/v2/ HTTP/1.1", 200),
        (b"GET http://registry.example HTTP/1.1", 200),
        (b"GET //v2// HTTP/1.1", 404),
        (b"GET /v2/../v2/ HTTP/1.1", 404),
        (b"GET /v2/..%2F..%2Fetc%2Fpasswd/blobs/x HTTP/1.1", 400),
        (b"GET /v2/_catalog?n&last&&=&%zz HTTP/1.1", 200),
        (b"GET /v2/_catalog%0A HTTP/1.1", 404),
        (b"GET /v2/hello/tags/list%0A HTTP/1.1", 404),
        (b"GET /v2/hello%0A/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/hello/manifests/latest%0A HTTP/1.1", 404),
        (b"GET /v2/hello%00/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/hello%/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/%ED%A0%80/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/%D9%A3/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/\xff/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/" + b"a" * 60000 + b"/manifests/latest HTTP/1.1", 400),
        (b"GET /v2/hello/manifests/" + b"a" * 60000 + b" HTTP/1.1", 404),
        (b"GET /v2/" + b"a" * 70000 + b" HTTP/1.1", 414),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"CONNECT registry.example:443 HTTP/1.1", 404),
        (b"get /v2/ HTTP/1.1", 405),
        (b"BREW /v2/ HTTP/1.1", 405),
        (b"GET /v2/", 400),
        (b"GET v2/ HTTP/1.1", 400),
        (b"GET /v2/ HTTP/3.7", 400),
    ],
)
def test_malformed_request_lines(target: Target, line: bytes, status: int) -> None:
    (response,) = ask(target, line + b"\r\n" + HOST_LINE + CLOSE)
    assert response.status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"X: " + b"y" * 100_000 + b"\r\n", 200),
        (b"X: " + b"y" * 1_000_000 + b"\r\n", 431),
        (b"".join(b"X%d: y\r\n" % number for number in range(1000)), 431),
        (b"X: \0\r\n", 400),
        (b"X : y\r\n", 400),
        (b" folded\r\n", 400),
    ],
)
def test_malformed_header_fields(target: Target, headers: bytes, status: int) -> None:
    (response,) = ask(target, VERSION + headers + CLOSE)
    assert response.status == status


def test_repeated_header_fields(target: Target) -> None:
    blob = f"GET /v2/hello/blobs/{target.blob} HTTP/1.1\r\n".encode() + HOST_LINE
    (whole,) = ask(target, blob + b"Range: bytes=0-1\r\nRange: bytes=3-4\r\n" + CLOSE)
    assert (whole.status, whole.body) == (200, target.content)
    (known,) = ask(
        target, blob + f'If-None-Match: "x"\r\nIf-None-Match: W/"{target.blob}"\r\n'.encode() + CLOSE
    )
    assert known.status == 304
    manifest = f"GET /v2/hello/manifests/{target.digest} HTTP/1.1\r\n".encode() + HOST_LINE
    assert statuses(ask(target, manifest + b"Accept: text/html\r\nAccept: */*\r\nAccept: ,\r\n" + CLOSE)) == [
        200
    ]


def test_http2_without_tls_is_refused(target: Target) -> None:
    # No registry client uses it in clear text. Its preface (RFC 9113, 3.4) is refused at once.
    received = target.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
    assert not received or received.startswith(b"HTTP/1.1 400 ")
    target.check_health()


def test_a_client_that_disconnects(target: Target) -> None:
    blob = f"GET /v2/hello/blobs/{target.blob} HTTP/1.1\r\n".encode() + HOST_LINE
    for sent in (
        b"",
        b"G",
        b"GET /v2/ HTTP/1.1\r\nX",
        VERSION + b"\r\n",
        blob + b"\r\n",
        blob + b"Range: bytes=0-1\r\n\r\n" * 9,
    ):
        with socket.create_connection((HOST, target.server.port), timeout=20) as connection:
            connection.sendall(sent)
    target.check_health()


def test_many_silent_connections_delay_no_request(target: Target) -> None:
    address = (HOST, target.server.port)
    silent = [socket.create_connection(address, timeout=20) for _ in range(50)]
    try:
        assert statuses(parse_responses(exchange(address, VERSION + CLOSE), ["GET"])) == [200]
    finally:
        for connection in silent:
            connection.close()
    target.check_health()
