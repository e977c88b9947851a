"""Web servers in a thread of the test, on a free port of the loopback interface."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.server import HOST


class _Server(ThreadingHTTPServer):
    # More connections at once than that are refused for a second.
    request_queue_size = 128


@contextmanager
def serving(
    handler: Callable[..., BaseHTTPRequestHandler], port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve with a handler class until the context ends; yield the port.

    Args:
        handler: runs in a separate thread for each connection.
        port: 0 for a free one.
        tls: serve HTTPS; each handshake happens in the thread of its connection.
    """
    with _Server((HOST, port), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class FileServer:
    """A server of a directory.

    Attributes:
        url: of the directory.
        requests: the requested paths, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[str] = []


@contextmanager
def file_server(directory: Path) -> Iterator[FileServer]:
    """Serve the files of a directory."""
    served = FileServer()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with serving(partial(Handler, directory=str(directory))) as port:
        served.url = f"http://{HOST}:{port}"
        yield served
