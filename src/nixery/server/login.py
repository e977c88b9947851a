"""Login for the pages: ``/login``, ``/login/callback`` and ``/logout``, and the sessions that they begin and end.

A login is OpenID Connect's authorization code flow with PKCE. A session is a sealed cookie: every replica that has the
secret can read it, and none keeps a list of sessions. So a logout ends the session of one browser, and a session ends by
itself after eight hours. Without an issuer to log in with, ``/login`` has the browser ask for a password.

Cross-site requests: a browser sends the cookie with links from other sites, but not with their forms, scripts and images
(``SameSite=Lax``); and ``clients.refusal`` refuses each request that a browser says another site's page caused, if it is
not a link to a page. No link changes anything.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from nixery.access.identity import CredentialsRefused, Identity, Kind
from nixery.access.oidc import Flow, OidcIssuers
from nixery.access.sealing import Sealer
from nixery.builds.slots import Slots
from nixery.caching import TTLCache
from nixery.errors import NixeryError, TooBusy
from nixery.plain_text import shortened
from nixery.server.clients import base_url, is_encrypted
from nixery.server.errors import error_response, errors_body
from nixery.server.http import BytesResponse, ErrorResponse, Handler, Request, Response, prefers_html
from nixery.server.pages.templating import Templates

PATHS = frozenset({"/login", "/login/callback", "/logout"})
_CALLBACK = "/login/callback"

# Seconds: eight hours of work; ten minutes to enter a password elsewhere.
_SESSION, _LOGIN = 8 * 3600.0, 600.0

# Paths that programs request.
_PROGRAMS = ("/v2", "/api/")

# Names of the cookies. Browsers let only this host set a cookie with the prefix, over TLS, for all paths (RFC 6265bis).
_PREFIX = "__Host-"
_SESSION_COOKIE, _LOGIN_COOKIE = "nixery-session", "nixery-login"

# Characters of a cookie that browsers keep, with its name and attributes; and of all cookies that are parsed.
_LONGEST_COOKIE, _LONGEST_COOKIES = 4096, 16 * 1024
_ATTRIBUTES = 200

# Bytes of the sessions that are kept decrypted.
_CAPACITY = 1024 * 1024

# Requests to issuers that callbacks cause at the same time, and that wait.
_AT_ONCE, _QUEUE = 4, 64

# Characters of a code and of a state: codes of some issuers are tokens.
_LONGEST_CODE, _LONGEST_STATE = 2048, 128

# Characters of an issuer's reason in a message.
_SHOWN = 200

# A path of this server, as a browser may get it in `Location`: browsers take `//` and `/\\` for the beginning of a host,
# and drop tabs and line breaks.
_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]{0,1023}", re.ASCII)

_LOOPBACK = re.compile(r"http://(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?", re.ASCII | re.IGNORECASE)

_NO_STORE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


class _Pending(BaseModel):
    """A login between ``/login`` and its callback."""

    flow: Flow
    to: str


class _Session(BaseModel):
    """A session, as its cookie has it."""

    issuer: str
    name: Annotated[str, Field(min_length=1)]
    groups: tuple[str, ...]
    claims: dict[str, str]


class Login:
    """The routes for logins, and the identities of sessions.

    Args:
        issuers: to log in with.
        secret: that seals cookies; at least 32 random bytes, the same for all replicas.
        templates: of the pages.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        issuers: OidcIssuers,
        secret: bytes,
        templates: Templates | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuers = issuers
        self._logins = frozenset(issuers.logins)
        self._sessions = Sealer(secret, "session", clock)
        self._pending = Sealer(secret, "login", clock)
        self._templates = templates or Templates()
        self._clock = clock
        self._known: TTLCache[str, Identity] = TTLCache(_CAPACITY, clock)
        self._callbacks = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LOGINS)

    def routes(self) -> Mapping[str, Handler]:
        """Handlers by path."""
        return {"/login": self.login, _CALLBACK: self.callback, "/logout": self.logout}

    def identity_of(self, request: Request) -> Identity | None:
        """Return the identity of a request's session; ``None`` without a valid one. Costs a look-up if it is known."""
        sealed = _cookie(request, _SESSION_COOKIE)
        if sealed is None:
            return None
        found = self._known.get(sealed)
        if found is not None:
            return found
        document, expires = self._sessions.open(sealed) or ({}, 0.0)
        try:
            session = _Session.model_validate(document)
        except ValidationError:
            return None
        if session.issuer not in self._logins:
            return None
        identity = Identity(Kind.OIDC, session.name, frozenset(session.groups), session.claims)
        self._known.put(sealed, identity, len(sealed) * 4, expires - self._clock())
        return identity

    def way_in(self, request: Request) -> Response | None:
        """Return the redirect to the login, for a browser whose user has to log in; ``None`` where a password is asked.

        A browser with a challenge would show its own dialog for a password, and not the page with the answer.
        """
        if (
            not self._logins
            or request.method != "GET"
            or request.path in PATHS
            or request.path.startswith(_PROGRAMS)
            or "authorization" in request.headers
            or not prefers_html(request)
        ):
            return None
        query = f"?{request.query_string}" if request.query_string else ""
        to = quote(request.path, safe="/:@!$&'()*+,;=~") + query
        return _redirect(f"/login?to={quote(to, safe='/')}")

    async def login(self, request: Request) -> Response:
        """Send the browser to an issuer; of several, the user chooses one."""
        if request.method not in {"GET", "HEAD"}:
            return _method_not_allowed("GET")
        to = _own_path(request.query.get("to", "/"))
        refused = self._refusal(request, to)
        if refused is not None:
            return refused
        names = self._issuers.logins
        chosen = request.query.get("with", names[0] if len(names) == 1 else "")
        if not chosen:
            links = [(name, f"/login?with={quote(name, safe='')}&to={quote(to, safe='/')}") for name in names]
            return self._templates.response("login.html", links=links)
        try:
            flow, url = await self._issuers.begin_login(chosen, f"{base_url(request)}{_CALLBACK}")
        except CredentialsRefused as error:
            return errors_body(404, "UNSUPPORTED", f"cannot log in: {error}", headers=_NO_STORE)
        except NixeryError as error:
            return error_response(error)
        sealed = self._pending.seal(_Pending(flow=flow, to=to).model_dump(), _LOGIN)
        return _redirect(url, _set(request, _LOGIN_COOKIE, sealed, _LOGIN))

    async def callback(self, request: Request) -> Response:
        """Begin a session, when the issuer has sent the browser back."""
        if request.method != "GET":
            return _method_not_allowed("GET")
        try:
            pending = self._pending_login(request)
            identity = await self._finish(pending, request.query)
            sealed = self._sealed_session(pending.flow.issuer, identity)
        except CredentialsRefused as error:
            answer = errors_body(403, "DENIED", f"cannot log in: {error}", headers=_NO_STORE)
            answer.title = "Not logged in"
            return answer
        except NixeryError as error:
            return error_response(error)
        return _redirect(pending.to, _set(request, _SESSION_COOKIE, sealed, _SESSION))

    async def logout(self, request: Request) -> Response:
        """End the session of a browser. A link does not do that: other sites have links, too."""
        if request.method == "POST":
            return _redirect("/logout", _set(request, _SESSION_COOKIE, "", 0))
        if request.method not in {"GET", "HEAD"}:
            return _method_not_allowed("GET, POST")
        identity = self.identity_of(request)
        page = self._templates.response(
            "logout.html",
            name=None if identity is None else identity.name,
            password="authorization" in request.headers,
        )
        # With the policy of the other pages, the form would be sent with `Origin: null`, as other sites' forms can be.
        page.headers = {**page.headers, "Referrer-Policy": "same-origin"}
        return page

    async def _finish(self, pending: _Pending, answer: Mapping[str, str]) -> Identity:
        if "error" in answer:
            raise CredentialsRefused(
                f"the issuer {pending.flow.issuer} refused the login: {shortened(answer['error'], _SHOWN)}"
            )
        code = answer.get("code", "")
        if not 0 < len(code) <= _LONGEST_CODE:
            raise CredentialsRefused("the issuer sent no code; log in again")
        async with self._callbacks.slot():
            return await self._issuers.finish_login(pending.flow, code, answer.get("iss"))

    def _sealed_session(self, issuer: str, identity: Identity) -> str:
        session = _Session(
            issuer=issuer,
            name=identity.name,
            groups=tuple(sorted(identity.groups)),
            claims=dict(identity.claims),
        )
        sealed = self._sessions.seal(session.model_dump(), _SESSION)
        if len(sealed) + _ATTRIBUTES > _LONGEST_COOKIE:
            raise CredentialsRefused(
                f"the session with {len(identity.groups)} groups does not fit into a cookie; have the issuer send "
                "fewer groups"
            )
        return sealed

    def _refusal(self, request: Request, to: str) -> Response | None:
        """Return the answer where no issuer can be used; ``None`` otherwise."""
        if not self._logins:
            # The server has checked the credentials before it called this.
            if "authorization" in request.headers:
                return _redirect(to)
            return errors_body(
                401,
                "UNAUTHORIZED",
                "log in with the name and the password that you have for this server",
                headers={**_NO_STORE, "WWW-Authenticate": 'Basic realm="nixery", charset="UTF-8"'},
            )
        if not _is_private(request):
            return errors_body(
                403,
                "DENIED",
                "a login over plain HTTP would show the session to the network: open this page by https, or set "
                "NIXERY_PUBLIC_URL to the https URL that the proxy of this server has",
                headers=_NO_STORE,
            )
        return None

    def _pending_login(self, request: Request) -> _Pending:
        opened = self._pending.open(_cookie(request, _LOGIN_COOKIE) or "")
        again = "this browser has not begun it here, or more than ten minutes ago; log in again"
        if opened is None:
            raise CredentialsRefused(again)
        try:
            pending = _Pending.model_validate(opened[0])
        except ValidationError:
            raise CredentialsRefused(again) from None
        state = request.query.get("state", "")[:_LONGEST_STATE]
        if not hmac.compare_digest(state.encode(errors="replace"), pending.flow.state.encode()):
            raise CredentialsRefused("the answer is for another login; log in again")
        return pending


def _is_private(request: Request) -> bool:
    """Whether the network cannot read a cookie."""
    return is_encrypted(request) or _LOOPBACK.fullmatch(base_url(request)) is not None


def _name(request: Request, name: str) -> str:
    return _PREFIX + name if is_encrypted(request) else name


def _set(request: Request, name: str, value: str, seconds: float) -> dict[str, Any]:
    """Return the field that sets a cookie, or deletes it after zero seconds."""
    secure = "; Secure" if is_encrypted(request) else ""
    cookie = f"{_name(request, name)}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds:.0f}{secure}"
    return {"Set-Cookie": cookie}


def _cookie(request: Request, name: str) -> str | None:
    # HTTP/2 sends each cookie in a field of its own (RFC 9113, 8.2.3), and repeated fields are joined with commas.
    given = request.headers.get("cookie")
    if given is None or name not in given or len(given) > _LONGEST_COOKIES:
        return None
    wanted = _name(request, name)
    for pair in re.split(r"[;,]", given):
        found, _, value = pair.strip().partition("=")
        if found == wanted:
            return value.strip('"')
    return None


def _own_path(text: str) -> str:
    """Return a path of this server to send a browser to; the home page for anything else."""
    return text if _OWN_PATH.fullmatch(text) else "/"


def _redirect(to: str, fields: Mapping[str, str] | None = None) -> BytesResponse:
    return BytesResponse(303, b"", {"Location": to, **_NO_STORE, **(fields or {})})


def _method_not_allowed(allowed: str) -> ErrorResponse:
    message = f"method not allowed: use {allowed.replace(', ', ' or ')}"
    return errors_body(405, "UNSUPPORTED", message, headers={"Allow": allowed})
