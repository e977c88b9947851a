"""Classes of routes, for metrics and traces: few of them, whatever clients ask for.

What is noted of each request: numbers always, a line and a trace where somebody wants them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from time import perf_counter
from typing import Protocol

import structlog

from nixery.request_context import INTERNAL, Client, RequestContext, RequestIds, enter_request
from nixery.server.clients import FORWARDED_FOR, REQUEST_ID, Clients
from nixery.server.http import Request, Response
from nixery.telemetry.metrics import RequestCounts

_RESOURCES = frozenset({"blobs", "referrers"})

# By the first part of a path.
_FIRST = {
    "": "page",
    "api": "api",
    "builds": "page",
    "healthz": "health",
    "images": "page",
    "metrics": "metrics",
    "readyz": "health",
    "static": "page",
}
_ENDS = {"/v2": "version", "/v2/_catalog": "catalog"}
OTHER = "other"


def route_class(path: str) -> str:
    """Return the class of a path, valid or not.

    As the router does, it looks at the end: names have slashes.
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


# Seconds from which on an answer is worth a line, whatever it was.
_SLOW = 1.0

# A client may send 65,534 bytes of path, and more in a header field. A line of a log is for reading.
_LONGEST = 512

# Paths whose class is kept, but for long ones: a fleet asks for the same again and again.
_ROUTES = 4096

_CLIENT_ERROR = 400
_SERVER_ERROR = 500

_log = structlog.get_logger("nixery.request")


class Span(Protocol):
    """A request in a trace."""

    def end(self, status: int, served: int) -> None:
        """End it with an answer."""
        ...


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, request_id: str, method: str, route: str, path: str, headers: Mapping[str, str]) -> Span:
        """Begin the trace of a request, or go on with the client's."""
        ...


class Peer(Protocol):
    """Who is connected. The web server writes the address down each time it is asked, which costs as much as all we note."""

    client: str


class Observed(RequestContext):
    """A request that is being answered. One object with few attributes, since every request makes one."""

    __slots__ = ("_clients", "_headers", "peer", "span", "started")

    def __init__(self, identity: str, peer: Peer, headers: Mapping[str, str], clients: Clients) -> None:
        self.id = identity
        self.waited = False
        self.abandoned = False
        self.started = perf_counter()
        self.peer: Peer | None = peer
        self.span: Span | None = None
        self._client = None
        self._waits = None
        self._headers: Mapping[str, str] | None = headers
        self._clients = clients

    @property
    def client(self) -> Client:
        """The client of the request. Computed on demand, since answers from memory do not need it."""
        if self._client is None:
            if self.peer is None or self._headers is None:
                return INTERNAL  # background work that no client waits for
            self._client = self._clients.client(self.peer.client, self._headers)
        return self._client

    def release(self) -> None:
        """Drop the peer and its header fields: timers and builds may keep this object for long."""
        self.peer = self._headers = None


class Observation:
    """Records requests.

    Args:
        counts: of all requests.
        clients: tells clients apart, and which of their header fields to trust.
        tracer: ``None`` if tracing is off.
        verbose: whether to log every request. Otherwise answers from memory, and blobs, are not logged: a
            pull of a stored image would be dozens of lines.
    """

    def __init__(
        self,
        counts: RequestCounts,
        clients: Clients | None = None,
        tracer: Tracer | None = None,
        *,
        verbose: bool = False,
    ) -> None:
        self._counts = counts
        self.clients = clients or Clients()
        self._tracer = tracer
        self._verbose = verbose
        self._ids = RequestIds()
        self._route_class = lru_cache(_ROUTES)(route_class)
        self._answering: set[Observed] = set()

    def begin(self, request: Request, peer: Peer) -> Observed:
        """Give a request its identity, which everything has that is started for it."""
        observed = Observed(
            self._ids.identify(request.headers.get(REQUEST_ID)), peer, request.headers, self.clients
        )
        enter_request(observed)
        self._answering.add(observed)
        if self._tracer is not None:
            observed.span = self._tracer.begin(
                observed.id, request.method, route_class(request.path), request.path, request.headers
            )
        return observed

    def end(self, observed: Observed, request: Request, response: Response) -> None:
        """Note an answer."""
        seconds = perf_counter() - observed.started
        status, path = response.status, request.path
        served = 0 if request.method == "HEAD" else response.length or 0
        route = (self._route_class if len(path) < _LONGEST else route_class)(path)
        self._counts.add(request.method, route, status, seconds, served)
        if observed.span is not None:
            observed.span.end(status, served)
        if observed.peer is not None and (
            self._verbose or status >= _CLIENT_ERROR or observed.waited or seconds > _SLOW
        ):
            _write_line(request, observed.peer, status, served, seconds, waited=observed.waited)

    def leave(self, observed: Observed) -> None:
        """The web server has accepted the whole answer."""
        self._answering.discard(observed)
        observed.release()

    def peers(self) -> list[str]:
        """Return the peers of requests in progress, as the web server writes addresses."""
        return [observed.peer.client for observed in self._answering if observed.peer is not None]

    def abandon(self, peers: Collection[str]) -> None:
        """Mark requests whose clients have gone: they stop waiting."""
        for observed in tuple(self._answering):
            if observed.peer is not None and observed.peer.client in peers:
                observed.abandon()


def _write_line(
    request: Request, peer: Peer, status: int, served: int, seconds: float, *, waited: bool
) -> None:
    fields = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "bytes": served,
        "seconds": round(seconds, 6),
        "client": peer.client,
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
