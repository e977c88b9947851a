"""A proxy in front of a registry that breaks off one transfer in the middle, once, and remembers what was asked."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests.support.server import HOST

# Seconds; the registry may be building.
_TIMEOUT = 300

_CHUNK = 1 << 16

# Between one client and one server, they are no business of the other pair's (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "proxy-connection",
}


@dataclass(frozen=True)
class Asked:
    """A request for the blob that was broken off."""

    range: str | None
    status: int
    sent: int


@dataclass
class CuttingProxy:
    """A running proxy.

    Attributes:
        blob: digest of the blob whose first transfer ends after half of it.
        asked: the requests for that blob, in their order.
    """

    blob: str
    upstream: int
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _was_cut: bool = False

    def may_cut(self, method: str, path: str, status: int) -> bool:
        """Whether to break off an answer: the first one with the blob in it."""
        with self.lock:
            if self._was_cut or method != "GET" or status != http.HTTPStatus.OK or not self.is_about(path):
                return False
            self._was_cut = True
            return True

    def is_about(self, path: str) -> bool:
        return path.endswith(f"/blobs/{self.blob}")


@contextmanager
def cutting_proxy(upstream: int, blob: str) -> Iterator[CuttingProxy]:
    """Run a proxy on a free port in front of the registry on another one."""
    proxy = CuttingProxy(blob, upstream)

    class Handler(_Handler):
        state = proxy

    server = ThreadingHTTPServer((HOST, 0), Handler)
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[CuttingProxy]

    def do_GET(self) -> None:
        self._hand_on()

    def do_HEAD(self) -> None:
        self._hand_on()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class named it
        """Say nothing; what matters is remembered."""

    def _hand_on(self) -> None:
        upstream = http.client.HTTPConnection(HOST, self.state.upstream, timeout=_TIMEOUT)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            # One by one: some clients send several lines of Accept.
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.endheaders()
            self._answer(upstream.getresponse())
        finally:
            upstream.close()

    def _answer(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        length = int(response.getheader("content-length", "0"))
        cut = self.state.may_cut(self.command, self.path, response.status)
        sent = self._copy(response, length // 2 if cut else length)
        if self.state.is_about(self.path) and self.command == "GET":
            with self.state.lock:
                self.state.asked.append(Asked(self.headers.get("range"), response.status, sent))
        if cut:
            # A line that goes dead, not an orderly end: the other side has yet to notice that something is missing.
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _copy(self, response: http.client.HTTPResponse, length: int) -> int:
        sent = 0
        while sent < length and (chunk := response.read(min(_CHUNK, length - sent))):
            self.wfile.write(chunk)
            sent += len(chunk)
        return sent
