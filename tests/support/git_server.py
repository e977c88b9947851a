"""A web server with git repositories, which asks for a password if it is told to, and looks at who asks."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_BACKEND = subprocess.run(
    ["git", "--exec-path"], check=True, capture_output=True, text=True, timeout=10
).stdout.strip()


class GitServer:
    """A running server.

    Attributes:
        url: of the directory with repositories.
        requests: methods and paths, in their order.
        credentials: ``user:password`` that it asks for; ``None`` for none.
        headers: ``Authorization`` of the requests.
        seen: command lines of all processes of this machine, as they were during the requests.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[str] = []
        self.credentials: str | None = None
        self.redirect: str | None = None
        self.seen: set[str] = set()
        self.headers: list[str] = []

    def with_credentials(self, path: str) -> str:
        return f"http://{self.credentials}@127.0.0.1:{self.port}/{path}"

    def look(self) -> None:
        """Whoever asks waits for the answer, and so is running now."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                self.seen.add(
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue

    def is_welcome(self, header: str) -> bool:
        self.headers.append(header)
        if self.credentials is None:
            return True
        return header == f"Basic {base64.b64encode(self.credentials.encode()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    served: GitServer
    directory: Path

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.served.look()
        self.served.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.served.redirect is not None:
            self._send(302, b"", {"Location": self.served.redirect + self.path})
        elif not self.served.is_welcome(self.headers.get("Authorization", "")):
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif (file := self.directory / urlsplit(self.path).path.lstrip("/")).is_file() and ".git" not in str(
            file.relative_to(self.directory)
        ):
            self._send(200, file.read_bytes(), {})
        else:
            self._run(body)

    def _run(self, body: bytes) -> None:
        url = urlsplit(self.path)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_PROJECT_ROOT": str(self.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        completed = subprocess.run(
            [f"{_BACKEND}/git-http-backend"],
            input=body,
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        head, _, content = completed.stdout.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().splitlines() if ": " in line]
        headers = dict(lines)
        self._send(int(headers.pop("Status", "200").split()[0]), content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name != "Content-Length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def git_server(directory: Path) -> Iterator[GitServer]:
    """Serve the repositories and the files of a directory on a free port of the loopback interface."""

    class Handler(_Handler):
        pass

    Handler.directory = directory
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Handler.served = GitServer(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
