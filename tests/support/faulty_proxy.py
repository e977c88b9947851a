"""A proxy in front of a bucket that goes wrong every so often, in one of several ways."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal

from tests.support.server import HOST

_TIMEOUT = 60
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}

Fault = Literal["none", "error", "cut"]


@dataclass
class FaultyProxy:
    """A running proxy.

    Attributes:
        fault: what goes wrong: an answer with 503 before the server is asked, or an answer that ends after half of its body.
        every: with which request.
        faults: how often it did.
        requests: methods and paths that came, in their order.
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
        with self._lock:
            self.requests.append((method, path.partition("?")[0]))
            if self.fault == "none" or next(self._count) % self.every:
                return "none"
            self.faults += 1
            return self.fault


@contextmanager
def faulty_proxy(upstream: int, port: int = 0) -> Iterator[FaultyProxy]:
    """Run a proxy, on a free port unless it is told one, in front of the server on another one."""
    proxy = FaultyProxy(upstream)

    class Handler(_Handler):
        state = proxy

    server = ThreadingHTTPServer((HOST, port), Handler)
    server.daemon_threads = True
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_TIMEOUT)


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Read what came with a request, in one piece or in chunks."""
    if handler.headers.get("transfer-encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", "0")))
    chunks = []
    while size := int(handler.rfile.readline(), 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[FaultyProxy]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class named it
        """Say nothing; what matters is remembered."""

    def _hand_on(self) -> None:
        body = read_body(self)
        fault = self.state.next_fault(self.command, self.path)
        if fault == "error":
            self.send_response_only(503)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(HOST, self.state.upstream, timeout=_TIMEOUT)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            self._answer(upstream.getresponse(), cut=fault == "cut")
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _hand_on  # noqa: N815 -- the base class named them

    def _answer(self, response: http.client.HTTPResponse, *, cut: bool) -> None:
        content = response.read()
        self.send_response_only(response.status)
        names = {name.lower() for name, _ in response.getheaders()}
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
