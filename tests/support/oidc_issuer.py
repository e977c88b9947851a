"""An OpenID Connect issuer in a thread of the test, with real keys, that misbehaves on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, Key

from tests.support.server import HOST
from tests.support.web_server import serving


def new_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid})


@dataclass
class OidcProvider:
    """The keys and the behaviour of the issuer.

    Attributes:
        keys: that sign tokens; the first one, unless a test names another.
        published: the key set, if it is not that of the keys.
        discovery: members of the discovery document that differ.
        cache_control: of the key set.
        behaviour: of the documents: "", "down", "huge", "slow" or "redirect".
        client_secret: that the token endpoint requires; empty for a public client.
        id_claims: of the tokens of logins; ``nonce`` may be overridden.
        requests: method and path of every request, in order.
        released: lets slow answers end.
    """

    port: int = 0
    scheme: str = "http"
    keys: list[Key] = field(default_factory=lambda: [new_key("first")])
    published: list[Mapping[str, Any]] | None = None
    discovery: dict[str, Any] = field(default_factory=dict)
    cache_control: str = "public, max-age=3600"
    behaviour: str = ""
    client_secret: str = ""
    id_claims: dict[str, Any] = field(default_factory=lambda: {"sub": "alice"})
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}"

    @property
    def fetches(self) -> int:
        """How often the key set was requested."""
        return self.requests.count("GET /keys")

    def claims(self, **others: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON is anything
        now = int(time.time())
        given = {"iss": self.url, "aud": "nixery", "sub": "me", "iat": now, "exp": now + 600, **others}
        return {name: value for name, value in given.items() if value is not None}

    def token(self, key: Key | None = None, header: Mapping[str, Any] | None = None, **others: Any) -> str:  # noqa: ANN401
        key = key or self.keys[0]
        given = {"alg": "ES256", "kid": key.kid, **(header or {})}
        fields = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(fields, self.claims(**others), key, algorithms=[given["alg"]])


@contextmanager
def oidc_provider(tls: ssl.SSLContext | None = None) -> Iterator[OidcProvider]:
    """Serve on a free port of the loopback interface."""
    provider = OidcProvider(scheme="https" if tls else "http")

    class Handler(_Handler):
        state = provider

    with serving(Handler, tls=tls) as provider.port:
        try:
            yield provider
        finally:
            provider.released.set()


class _Handler(BaseHTTPRequestHandler):
    state: OidcProvider
    timeout = 30

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.state.requests.append(f"GET {parts.path}")
        match parts.path:
            case "/authorize":
                self._authorize({name: values[0] for name, values in parse_qs(parts.query).items()})
            case "/.well-known/openid-configuration":
                self._document(
                    {
                        "issuer": self.state.url,
                        "jwks_uri": f"{self.state.url}/keys",
                        "authorization_endpoint": f"{self.state.url}/authorize",
                        "token_endpoint": f"{self.state.url}/token",
                        **self.state.discovery,
                    }
                )
            case "/keys":
                published = [key.as_dict(private=False) for key in self.state.keys]
                self._document({"keys": published if self.state.published is None else self.state.published})
            case _:
                self._answer(404, {})

    def do_POST(self) -> None:
        self.state.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        begun = self.state.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        basic = base64.b64encode(f"pages:{self.state.client_secret}".encode()).decode()
        if self.state.client_secret and self.headers.get("Authorization") != f"Basic {basic}":
            self._answer(401, {}, b'{"error": "invalid_client"}')
        elif (
            begun is None
            or challenge != begun["code_challenge"]
            or form["redirect_uri"] != begun["redirect_uri"]
            or form["grant_type"] != "authorization_code"
        ):
            self._answer(400, {}, b'{"error": "invalid_grant"}')
        else:
            given = {"aud": begun["client_id"], "nonce": begun["nonce"], **self.state.id_claims}
            self._answer(200, {}, json.dumps({"id_token": self.state.token(**given)}).encode())

    def _authorize(self, query: Mapping[str, str]) -> None:
        """Log in without a question."""
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        code = f"code-{len(self.state.requests)}"
        self.state.codes[code] = dict(query)
        answer = urlencode({"code": code, "state": query["state"]})
        self._answer(302, {"Location": f"{query['redirect_uri']}?{answer}"})

    def _document(self, document: Mapping[str, Any]) -> None:
        match self.state.behaviour:
            case "down":
                self._answer(503, {})
            case "redirect":
                self._answer(302, {"Location": f"{self.state.url}/elsewhere"})
            case "huge":
                self._answer(200, {}, json.dumps({**document, "more": "x" * 300_000}).encode())
            case "slow":
                self.state.released.wait(30)
            case _:
                fields = {"Cache-Control": self.state.cache_control} if self.path == "/keys" else {}
                self._answer(200, fields, json.dumps(document).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- http.server's name
        """Log nothing: requests are in ``requests``."""
