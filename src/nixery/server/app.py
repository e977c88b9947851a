"""Bodies that come while they are sent: from a bucket, or events of a build.

The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from urllib.parse import parse_qsl

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.errors import InternalError, NixeryError, StorageError
from nixery.server.clients import FROM_PROXIES, REQUEST_ID, is_forwarded, refusal
from nixery.server.connections import Backpressure
from nixery.server.errors import error_response, errors_body
from nixery.server.http import (
    AnswerProtocol,
    ByteRange,
    BytesResponse,
    Fields,
    FileResponse,
    Headers,
    NotModified,
    Request,
    Response,
    Scope,
    StreamResponse,
)
from nixery.server.observation import Observation

Pieces = AsyncGenerator[bytes, None]

_log = structlog.get_logger("nixery.server")


async def begun(request: Request, response: Response) -> tuple[Response, Pieces | None]:
    """Read the first piece before the status is sent: what cannot be read at all is an error that can be told.

    Returns:
        what to answer, and its body if that is a stream.
    """
    if not isinstance(response, StreamResponse) or request.method == "HEAD":
        return response, None
    pieces = response.begin()
    try:
        first = await anext(pieces, b"")
    except NixeryError as error:
        return error_response(error), None
    return response, _following(first, pieces)


async def send_pieces(
    request: Request,
    response: Response,
    pieces: Pieces,
    headers: Fields,
    protocol: AnswerProtocol,
    backpressure: Backpressure,
) -> None:
    """Send a body, as fast as the client reads, until it is over, cannot be read any further, or the client goes."""
    if response.length is not None:
        headers.append(("content-length", str(response.length)))
    # Closed at once: a client that has gone holds nothing open behind us.
    async with aclosing(pieces):
        transport = protocol.response_stream(response.status, headers)
        try:
            with suppress(ProtocolClosed):
                async for piece in pieces:
                    if not await backpressure.admit(len(piece)):
                        break
                    await transport.send_bytes(piece)
        except StorageError as error:
            # The client sees that bytes are missing, and comes back for them.
            _log.warning("a transfer broke off", path=request.path, reason=str(error))


async def _following(first: bytes, pieces: Pieces) -> Pieces:
    async with aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


Handler = Callable[[Request], Awaitable[Response]]

# Where bodies are read, and bytes of one. What comes to the registry has none that matters.
_TAKES_BODIES = "/api/"
_LARGEST_BODY = 16 * 1024

# Pieces of a body: each costs as much as a whole small request, and may be a single byte.
_MOST_PIECES = 64

# Seconds for a body to come. While one is waited for, its connection counts among those that the server takes.
_PATIENCE = 10.0

# Characters of a path in a log line.
_LOGGED = 512

# The status that nginx logs for such requests.
_CLIENT_HAS_GONE = 499

# Forbids browsers to guess another type, for example to take a log for a page (Fetch standard).
_NO_SNIFFING = ("x-content-type-options", "nosniff")


class Application:
    """Routes requests. A plain callable: a framework costs more than all our work for a cached answer.

    Args:
        registry: answers below ``/v2/``; ``None`` for no registry.
        observation: records each request.
        others: handlers of other paths, by path.
        below: handlers of the rest, by prefix of the path; the first match wins.
        public_url: scheme and host by which clients reach us; ``None`` to use each request's own.

    Attributes:
        clients: as the observation tells them apart.
    """

    def __init__(
        self,
        registry: Handler | None,
        observation: Observation,
        others: Mapping[str, Handler],
        below: Mapping[str, Handler] | None = None,
        *,
        public_url: str | None = None,
    ) -> None:
        self._registry = registry
        self._observation = observation
        self._others = others
        self._below = tuple((below or {}).items())
        self.clients = observation.clients
        self._public_url = public_url

    def peers(self) -> list[str]:
        """Return the peers of requests in progress, as ``Scope.client`` has them."""
        return self._observation.peers()

    def abandon(self, peers: Collection[str]) -> None:
        """Stop waiting for clients that have gone. The web server does not report them."""
        self._observation.abandon(peers)

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        method, path, query = scope.method, scope.path, scope.query_string
        headers = _headers(scope.headers)
        forwarded = False
        if not FROM_PROXIES.isdisjoint(headers):
            forwarded = is_forwarded(headers)
            headers = self.clients.believed(headers, scope.client)
        request = Request(method, path, headers, {}, b"", forwarded, self._public_url)
        observed = self._observation.begin(request, scope)
        try:
            response, pieces = await self._answer(request, query, scope, protocol)
            # Before sending: afterwards, the web server's threads would wait for it.
            self._observation.end(observed, request, response)
            more = [(REQUEST_ID, observed.id), _NO_SNIFFING]
            fields = [*response.headers.items(), *more]
            if pieces is None:
                _send(method, response, fields, protocol)
            else:
                await send_pieces(request, response, pieces, fields, protocol, Backpressure(scope.client))
        except asyncio.CancelledError:
            if not observed.abandoned:
                raise
            # The web server needs an answer, although the client has gone.
            protocol.response_empty(_CLIENT_HAS_GONE, [(REQUEST_ID, observed.id)])
        finally:
            self._observation.leave(observed)

    async def _answer(
        self, request: Request, query: str, scope: Scope, protocol: AnswerProtocol
    ) -> tuple[Response, Pieces | None]:
        """Return the answer, and its body if that is a stream; see ``begun``."""
        try:
            answer: Response | None = refusal(request, query, scope)
            if answer is None:
                if query:
                    request = replace(request, query=_query(query))
                if request.method == "POST" and request.path.startswith(_TAKES_BODIES):
                    request, answer = await _with_body(request, protocol)
            if answer is None:
                handler = self._handler(request.path)
                answer = _nothing() if handler is None else await handler(request)
            return await begun(request, answer)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path[:_LOGGED])
            return error_response(InternalError(None)), None

    def _handler(self, path: str) -> Handler | None:
        if path.startswith("/v2/") or path == "/v2":
            return self._registry
        handler = self._others.get(path)
        if handler is not None:
            return handler
        return next((handler for beginning, handler in self._below if path.startswith(beginning)), None)


def _nothing() -> Response:
    message = "this is a container registry: pull an image, for example HOST/shell/git"
    return errors_body(404, "UNSUPPORTED", message)


def _late() -> Response:
    message = f"the body of the request did not come within {_PATIENCE:.0f} seconds"
    # What else may come on this connection is no request (RFC 9110, 15.5.9).
    return errors_body(408, "UNSUPPORTED", message, headers={"Connection": "close"})


async def _with_body(request: Request, protocol: AnswerProtocol) -> tuple[Request, Response | None]:
    """Wait for the body; return the request with it, or an error answer if it does not arrive."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return replace(request, body=await _body(protocol)), None
    except TimeoutError:
        return request, _late()


async def _body(protocol: AnswerProtocol) -> bytes | None:
    body = bytearray()
    pieces = 0
    async for chunk in protocol:
        body += chunk
        pieces += 1
        if len(body) > _LARGEST_BODY or pieces > _MOST_PIECES:
            return None
    return bytes(body)


def _headers(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _query(raw: str) -> Mapping[str, str]:
    return dict(parse_qsl(raw, keep_blank_values=True)) if raw else {}


def _send(method: str, response: Response, headers: Fields, protocol: AnswerProtocol) -> None:
    if isinstance(response, NotModified):
        protocol.response_empty(response.status, headers)
        return
    if response.length is not None:
        headers.append(("content-length", str(response.length)))
    match response:
        case BytesResponse() | FileResponse() | StreamResponse() if method == "HEAD":
            protocol.response_empty(response.status, headers)
        case BytesResponse(status, content):
            protocol.response_bytes(status, headers, content)
        # Files are read by the web server, outside of the interpreter. If one has gone meanwhile, it answers 404.
        case FileResponse(status, path, part=ByteRange(first, last)):
            protocol.response_file_range(status, headers, str(path), first, last + 1)
        case FileResponse(status, path):
            protocol.response_file(status, headers, str(path))
