"""A web server of git repositories, with optional password, that records its clients."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.server import HOST
from tests.support.web_server import serving

_BACKEND = subprocess.run(
    ["git", "--exec-path"], check=True, capture_output=True, text=True, timeout=10
).stdout.strip()

# For a shell: git's command follows. The server sends to the client what it prints to stderr.
_PACK_OBJECTS = 'f() { [ -z "$NIXERY_TEST_MESSAGE" ] || echo "$NIXERY_TEST_MESSAGE" >&2; exec "$@"; }; f'


class GitServer:
    """A running server.

    Attributes:
        url: of the directory with repositories.
        requests: methods and paths, in order.
        credentials: the ``user:password`` it requires; ``None`` for none.
        redirect: the URL that all requests are redirected below.
        headers: the requests' ``Authorization``.
        seen: the command lines of all processes of this machine during the requests.
        message: a line that the client's git prints to stderr during a fetch.
        listed: the name of a reference that is listed instead of all references; unlike git's, of any form.
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[str] = []
        self.credentials: str | None = None
        self.redirect: str | None = None
        self.seen: set[str] = set()
        self.headers: list[str] = []
        self.message = ""
        self.listed: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def with_credentials(self, path: str) -> str:
        """Return the URL of a repository with the credentials in it."""
        return f"http://{self.credentials}@{HOST}:{self.port}/{path}"

    def look(self) -> None:
        """Record the command lines of all processes; the client is one of them, since it waits for the response."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                self.seen.add(
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue

    def is_allowed(self, header: str) -> bool:
        """Record an ``Authorization`` header and tell whether it has the credentials."""
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
        elif not self.served.is_allowed(self.headers.get("Authorization", "")):
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif self.served.listed is not None and b"command=ls-refs" in body:
            # Protocol version 2: one line, and the end of the list.
            line = b"f" * 40 + b" " + self.served.listed
            content = b"%04x" % (len(line) + len("0000")) + line + b"0000"
            self._send(200, content, {"Content-Type": "application/x-git-upload-pack-result"})
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
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "uploadpack.packObjectsHook",
            "GIT_CONFIG_VALUE_1": _PACK_OBJECTS,
            "NIXERY_TEST_MESSAGE": self.served.message,
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
def git_server(directory: Path, tls: ssl.SSLContext | None = None) -> Iterator[GitServer]:
    """Serve the repositories and the files of a directory on a free port of the loopback interface.

    Args:
        directory: with the repositories.
        tls: serve HTTPS.
    """

    class Handler(_Handler):
        served = GitServer()

    Handler.directory = directory
    with serving(Handler, tls=tls) as Handler.served.port:
        yield Handler.served
