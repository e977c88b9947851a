"""A binary cache that is as far away as wanted: ``python -m scripts.bench_remote.cache``.

Every answer waits for the delay, and all answers together have the bandwidth. The bytes of NARs are counted at
``/bytes``.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PIECE = 256 * 1024


class _Line:
    """The bandwidth of all answers together."""

    def __init__(self, rate: float) -> None:
        self._seconds = 1 / rate if rate else 0.0
        self._lock = threading.Lock()
        self._free = time.monotonic()
        self.sent = 0

    def take(self, size: int) -> None:
        with self._lock:
            self.sent += size
            now = time.monotonic()
            self._free = max(self._free, now) + size * self._seconds
            wait = self._free - now
        if wait > 0:
            time.sleep(wait)


def main() -> None:
    """Serve until killed; prints the port first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second; 0 for no limit")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    line = _Line(arguments.rate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            time.sleep(arguments.delay)
            if self.path == "/bytes":
                self._send(str(line.sent).encode())
                return
            file = Path(os.path.normpath(directory / self.path.lstrip("/")))
            if not file.is_relative_to(directory) or not file.is_file():
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(file.stat().st_size))
            self.end_headers()
            with file.open("rb") as content:
                while piece := content.read(_PIECE):
                    line.take(len(piece))
                    self.wfile.write(piece)

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
