"""Proxies that fail on purpose: in front of a bucket, or of a registry while a client pulls."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import ClassVar, Literal

from tests.support.server import HOST
from tests.support.web_server import serving

# Seconds; the registry behind the proxy may be building.
_TIMEOUT = 300

_CHUNK = 1 << 16

# Hop-by-hop headers, which are not forwarded (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "proxy-connection",
}

Fault = Literal["none", "error", "cut"]


@dataclass
class FaultyProxy:
    """A proxy that fails with every n-th request.

    Attributes:
        fault: ``error`` answers 503 without asking the server; ``cut`` ends the connection after half of the
            body.
        every: n.
        faults: how often it has failed.
        requests: methods and paths, in order.
    """

    upstream: int
    fault: Fault = "none"
    every: int = 3
    port: int = 0
    faults: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault:
        """Record a request and choose how to fail it."""
        with self._lock:
            self.requests.append((method, path.partition("?")[0]))
            if self.fault == "none" or next(self._count) % self.every:
                return "none"
            self.faults += 1
            return self.fault


@contextmanager
def faulty_proxy(upstream: int, port: int = 0) -> Iterator[FaultyProxy]:
    """Run a proxy in front of the server on a port.

    Args:
        upstream: port of the server.
        port: 0 for a free one.
    """
    proxy = FaultyProxy(upstream)

    class Handler(_FaultyHandler):
        state = proxy

    with serving(Handler, port) as proxy.port:
        yield proxy


@dataclass(frozen=True)
class BlobRequest:
    """A request for the blob whose first transfer is cut.

    Attributes:
        range: the request's ``Range``.
        sent: bytes of the body that were sent.
    """

    range: str | None
    status: int
    sent: int


@dataclass
class CuttingProxy:
    """A proxy that cuts the first transfer of one blob after half of it.

    Attributes:
        blob: digest of the blob.
        asked: the requests for the blob, in order.
    """

    blob: str
    upstream: int
    port: int = 0
    asked: list[BlobRequest] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _was_cut: bool = False

    def cuts(self, method: str, path: str, status: int) -> bool:
        """Tell whether to cut a response: the first one with the whole blob."""
        with self.lock:
            if self._was_cut or method != "GET" or status != http.HTTPStatus.OK or not self.is_blob(path):
                return False
            self._was_cut = True
            return True

    def is_blob(self, path: str) -> bool:
        """Tell whether a path is that of the blob."""
        return path.endswith(f"/blobs/{self.blob}")


@contextmanager
def cutting_proxy(upstream: int, blob: str) -> Iterator[CuttingProxy]:
    """Run a proxy on a free port in front of the registry on another one."""
    proxy = CuttingProxy(blob, upstream)

    class Handler(_CuttingHandler):
        state = proxy

    with serving(Handler) as proxy.port:
        yield proxy


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Read the body of a request, whether it has a length or comes in chunks."""
    if handler.headers.get("transfer-encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", "0")))
    chunks = []
    while size := int(handler.rfile.readline(), 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


class _Handler(BaseHTTPRequestHandler):
    """Forwards a request; subclasses send the response."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class named it
        """Log nothing."""

    def _forward(self, upstream_port: int, body: bytes) -> None:
        upstream = http.client.HTTPConnection(HOST, upstream_port, timeout=_TIMEOUT)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            # Header by header: some clients send several lines of Accept.
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            self._respond(upstream.getresponse())
        finally:
            upstream.close()

    def _respond(self, response: http.client.HTTPResponse) -> None:
        raise NotImplementedError

    def _send_head(self, response: http.client.HTTPResponse, length: int | None = None) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if length is not None and response.getheader("content-length") is None:
            self.send_header("content-length", str(length))
        self.end_headers()

    def _cut(self) -> None:
        # The connection just ends: the other side has to detect that bytes are missing.
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


class _FaultyHandler(_Handler):
    state: ClassVar[FaultyProxy]
    _fault: Fault = "none"

    def _handle(self) -> None:
        body = read_body(self)
        self._fault = self.state.next_fault(self.command, self.path)
        if self._fault == "error":
            self.send_response_only(503)
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self._forward(self.state.upstream, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 -- the base class named them

    def _respond(self, response: http.client.HTTPResponse) -> None:
        content = response.read()
        self._send_head(response, len(content))
        cut = self._fault == "cut"
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._cut()


class _CuttingHandler(_Handler):
    state: ClassVar[CuttingProxy]

    def _handle(self) -> None:
        self._forward(self.state.upstream, b"")

    do_GET = do_HEAD = _handle  # noqa: N815 -- the base class named them

    def _respond(self, response: http.client.HTTPResponse) -> None:
        self._send_head(response)
        length = int(response.getheader("content-length", "0"))
        cut = self.state.cuts(self.command, self.path, response.status)
        sent = self._copy(response, length // 2 if cut else length)
        if self.state.is_blob(self.path) and self.command == "GET":
            with self.state.lock:
                self.state.asked.append(BlobRequest(self.headers.get("range"), response.status, sent))
        if cut:
            self._cut()

    def _copy(self, response: http.client.HTTPResponse, length: int) -> int:
        sent = 0
        while sent < length and (chunk := response.read(min(_CHUNK, length - sent))):
            self.wfile.write(chunk)
            sent += len(chunk)
        return sent
