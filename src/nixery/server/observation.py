"""Record each request: counts always, a log line and a trace if they are enabled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from nixery.access.identity import Identity
from nixery.request_context import INTERNAL, Client, RequestContext, RequestIds, Wait, enter_request
from nixery.server.clients import FORWARDED_FOR, REQUEST_ID, Clients
from nixery.server.http import Request, Response, Scope
from nixery.telemetry.metrics import RequestCounts

if TYPE_CHECKING:
    from nixery.telemetry.traces import RequestSpan, Traces

# Route classes by the first part of a path, and by whole paths; few of them, for any paths that clients
# request.
_FIRST = {
    "": "page",
    "api": "api",
    "builds": "page",
    "healthz": "health",
    "images": "page",
    "nix-cache": "nix_cache",
    "packages": "page",
    "metrics": "metrics",
    "readyz": "health",
    "static": "page",
}
_ENDS = {"/v2": "version", "/v2/_catalog": "catalog"}
_RESOURCES = frozenset({"blobs", "referrers"})
OTHER = "other"

# Cached classes of short paths: a fleet asks for the same paths again and again.
_ROUTES = 4096

# Seconds from which on every answer has a log line.
_SLOW = 1.0

# Characters of a path or a header field in a log line; a client may send 65,534 bytes of path.
_LONGEST = 512

_CLIENT_ERROR = 400
_SERVER_ERROR = 500

_log = structlog.get_logger("nixery.request")


class Observed(RequestContext):
    """A request that is being answered. One object with few attributes, since every request makes one."""

    __slots__ = ("_clients", "_disconnect", "_headers", "_identity", "_watching", "scope", "span", "started")

    def __init__(self, identity: str, scope: Scope, headers: Mapping[str, str], clients: Clients) -> None:
        self.id = identity
        self.waited = False
        self.abandoned = False
        self.refused = None
        self.started = perf_counter()
        self.scope: Scope | None = scope
        self.span: RequestSpan | None = None
        self._client = None
        self._identity: Identity | None = None
        self._waits = None
        self._headers: Mapping[str, str] | None = headers
        self._disconnect: Callable[[], Awaitable[None]] | None = None
        self._watching: asyncio.Future[None] | None = None
        self._clients = clients

    @property
    def client(self) -> Client:
        """The client of the request. Computed on demand, since answers from memory do not need it."""
        if self._client is None and self._identity is not None:
            # Not by the kind of credentials: one with a password and three tokens would have four shares and quotas.
            self._client = Client(f"user:{self._identity}")
        if self._client is None:
            if self.scope is None or self._headers is None:
                return INTERNAL  # background work that no client waits for
            self._client = self._clients.client(self.scope.client, self._headers)
        return self._client

    @property
    def address(self) -> str:
        """The address of the client, also if its name is that of an identity; empty once the request was released."""
        if self.scope is None or self._headers is None:
            return ""
        return self._clients.client(self.scope.client, self._headers).name

    @property
    def peer(self) -> str:
        """The other end of the connection; empty once the request was released."""
        return self.scope.client if self.scope is not None else ""

    def identify(self, identity: Identity) -> None:
        """Count the request for somebody who identified themselves, rather than for their address."""
        if not identity.is_anonymous:
            # A client that was asked for before, to check the credentials, is that of the address.
            self._identity, self._client = identity, None

    def watch(self, disconnect: Callable[[], Awaitable[None]]) -> None:
        """Stop waiting when the client resets the stream of the request: its connection stays open.

        Args:
            disconnect: returns once the client has done so.
        """
        self._disconnect = disconnect

    def track(self, wait: Wait) -> None:
        """See ``RequestContext``. Most requests wait for nothing, so the client is watched from the first wait on."""
        super().track(wait)
        if self._disconnect is not None and self._watching is None:
            self._watching = asyncio.ensure_future(self._abandon_after(self._disconnect))

    async def _abandon_after(self, disconnect: Callable[[], Awaitable[None]]) -> None:
        await disconnect()
        self.abandon()

    def release(self) -> None:
        """Drop the web server's request and the header fields: timers and builds may keep this object for long."""
        self.scope = self._headers = self._disconnect = None
        if self._watching is not None:
            self._watching.cancel()


class Observation:
    """Records requests, and knows those in progress.

    Args:
        counts: of all requests.
        clients: tells clients apart, and which of their header fields to trust.
        traces: ``None`` if tracing is off.
        verbose: whether to log every request. Otherwise answers from memory, and blobs, are not logged: a
            pull of a stored image would be dozens of lines.
    """

    def __init__(
        self,
        counts: RequestCounts,
        clients: Clients | None = None,
        traces: Traces | None = None,
        *,
        verbose: bool = False,
    ) -> None:
        self._counts = counts
        self.clients = clients or Clients()
        self._traces = traces
        self._verbose = verbose
        self._ids = RequestIds()
        self._route_class = lru_cache(_ROUTES)(route_class)
        self._answering: set[Observed] = set()

    def begin(self, request: Request, scope: Scope) -> Observed:
        """Identify a request, and make it the context of all that is started on its behalf."""
        identity = self._ids.identify(request.headers.get(REQUEST_ID))
        observed = Observed(identity, scope, request.headers, self.clients)
        enter_request(observed)
        self._answering.add(observed)
        if self._traces is not None:
            observed.span = self._traces.begin(
                observed.id, request.method, route_class(request.path), request.path, request.headers
            )
        return observed

    def end(self, observed: Observed, request: Request, response: Response) -> None:
        """Record an answer."""
        seconds = perf_counter() - observed.started
        status, path = response.status, request.path
        served = 0 if request.method == "HEAD" else response.length or 0
        route = (self._route_class if len(path) < _LONGEST else route_class)(path)
        self._counts.add(request.method, route, status, seconds, served)
        if observed.span is not None:
            observed.span.end(status, served)
        if observed.scope is not None and (
            self._verbose or status >= _CLIENT_ERROR or observed.waited or seconds > _SLOW
        ):
            _write_line(request, observed.scope.client, status, served, seconds, waited=observed.waited)

    def leave(self, observed: Observed) -> None:
        """Forget a request: the web server has accepted the whole answer."""
        self._answering.discard(observed)
        observed.release()

    def peers(self) -> list[str]:
        """Return the peers of requests in progress, as the web server writes addresses."""
        return [observed.scope.client for observed in self._answering if observed.scope is not None]

    def abandon(self, peers: Collection[str]) -> None:
        """Stop waiting on behalf of clients that have disconnected; the web server does not report them."""
        for observed in tuple(self._answering):
            if observed.scope is not None and observed.scope.client in peers:
                observed.abandon()


def route_class(path: str) -> str:
    """Return the class of a path, valid or not, for metrics and traces.

    As the registry's router does, it looks at the end: names have slashes.
    """
    if path != "/v2" and not path.startswith("/v2/"):
        return _FIRST.get(path[1:].partition("/")[0], OTHER)
    name, _, rest = path.removesuffix("/").rpartition("/")
    name, _, kind = name.rpartition("/")
    if rest and len(name) > len("/v2/"):
        if kind == "manifests":
            return "manifest_by_digest" if ":" in rest else "manifest_by_tag"
        if kind in _RESOURCES:
            return kind[:-1]
        if kind == "tags" and rest == "list":
            return "tags"
    return _ENDS.get(path.rstrip("/"), OTHER)


def _write_line(
    request: Request, client: str, status: int, served: int, seconds: float, *, waited: bool
) -> None:
    fields = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "bytes": served,
        "seconds": round(seconds, 6),
        "client": client,
        "user_agent": request.headers.get("user-agent", ""),
    }
    forwarded = request.headers.get(FORWARDED_FOR)
    if forwarded is not None:
        fields["forwarded_for"] = forwarded
    shown = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in fields.items()}
    if status >= _SERVER_ERROR:
        _log.warning("request", **shown)
    elif status >= _CLIENT_ERROR or waited or seconds > _SLOW:
        _log.info("request", **shown)
    else:
        _log.debug("request", **shown)
