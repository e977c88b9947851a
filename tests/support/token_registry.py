"""A registry in memory that requires expiring tokens from its token server, and fails on demand."""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from nixery.oci.digest import Digest
from tests.support.server import HOST
from tests.support.web_server import serving


@dataclass
class TokenRegistry:
    """The contents and the behaviour of the registry.

    Attributes:
        uses: how many requests a token is valid for.
        failures: how many uploads get a 503 before one is accepted.
        refused: the status of all uploads; 0 to accept them.
        log: method and path of every request, in order.
    """

    port: int = 0
    user: str = "me:sesame"
    identity_token: str = "refresh"  # noqa: S105 -- of a test
    uses: int = 1000
    failures: int = 0
    refused: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    scopes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def token(self, scope: str) -> str:
        with self.lock:
            self.scopes.append(scope)
            name = f"token-{len(self.scopes)}"
            self.tokens[name] = self.uses
            return name

    def allows(self, header: str) -> bool:
        with self.lock:
            name = header.removeprefix("Bearer ")
            self.tokens[name] = self.tokens.get(name, 0) - 1
            return self.tokens[name] >= 0


@contextmanager
def token_registry(tls: ssl.SSLContext | None = None) -> Iterator[TokenRegistry]:
    """Serve on a free port of the loopback interface.

    Args:
        tls: serve HTTPS.
    """
    registry = TokenRegistry()

    class Handler(_Handler):
        state = registry

    with serving(Handler, tls=tls) as registry.port:
        yield registry


class _Handler(BaseHTTPRequestHandler):
    state: TokenRegistry
    timeout = 30

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.state.log.append(f"{self.command} {parts.path}")
        if parts.path == "/token":
            self._token(body, parse_qs(parts.query))
        elif not self.state.allows(self.headers.get("Authorization", "")):
            realm = f"http://{self.state.address}/token"
            self._answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="test"'})
        else:
            self._registry(parts.path, parse_qs(parts.query), body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 -- http.server's names

    def _token(self, body: bytes, query: dict[str, list[str]]) -> None:
        form = parse_qs(body.decode())
        basic = "Basic " + base64.b64encode(self.state.user.encode()).decode()
        if form.get("refresh_token") == [self.state.identity_token]:
            self._answer(200, {}, json.dumps({"access_token": self.state.token(form["scope"][0])}).encode())
        elif self.headers.get("Authorization") == basic:
            self._answer(200, {}, json.dumps({"token": self.state.token(query["scope"][0])}).encode())
        else:
            self._answer(401, {})

    def _registry(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        state = self.state
        if self.command == "HEAD":
            self._answer(200 if path.rpartition("/")[2] in state.blobs else 404, {})
        elif self.command == "POST" and state.refused:
            self._answer(state.refused, {}, b'{"errors":[{"code":"DENIED","message":"not for you"}]}')
        elif self.command == "POST":
            self._answer(202, {"Location": "/upload?_state=a%2Bb%3D"})
        elif path == "/upload":
            assert query["_state"] == ["a+b="]
            with state.lock:
                failing = state.failures > 0
                state.failures -= failing
            right = str(Digest.of(body)) == query["digest"][0]
            if right and not failing:
                state.blobs[query["digest"][0]] = body
            self._answer(503 if failing else 201 if right else 400, {})
        elif found := re.fullmatch(r"/v2/.+/manifests/(.+)", path):
            state.manifests[found[1]] = body
            self._answer(201, {"Docker-Content-Digest": str(Digest.of(body))})
        else:
            self._answer(200, {})

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- http.server's name
        """Log nothing: requests are in ``log``."""
