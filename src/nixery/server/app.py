"""The application as the web server calls it: routes a request to a handler, and sends the response.

RSGI is granian's own interface. Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from urllib.parse import parse_qsl

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.errors import InternalError, NixeryError, StorageError
from nixery.server.access_control import TOKEN_PATH, AccessControl
from nixery.server.clients import FROM_PROXIES, REQUEST_ID, is_forwarded, refusal
from nixery.server.connections import Backpressure
from nixery.server.errors import error_response, errors_body
from nixery.server.http import (
    AnswerProtocol,
    ByteRange,
    BytesResponse,
    ErrorResponse,
    Fields,
    FileResponse,
    Handler,
    Headers,
    NotModified,
    Request,
    Response,
    Scope,
    StreamResponse,
    prefers_html,
)
from nixery.server.observation import Observation, Observed

# Where request bodies are read, and their limit in bytes. The registry needs none.
_BODY_PREFIXES = ("/api/", TOKEN_PATH)
_LARGEST_BODY = 16 * 1024

# Paths that programs request.
_PROGRAM_PREFIXES = ("/v2/", "/api/")

# Limit on the pieces of a body: each costs as much as a small request, and may be a single byte.
_MOST_PIECES = 64

# Seconds for a request's body to arrive. Meanwhile, its connection counts among those that the server
# accepts.
_BODY_TIMEOUT = 10.0

# Characters of a path in a log line.
_LOGGED = 512

# The status that nginx logs for a request whose client has disconnected.
_CLIENT_CLOSED_REQUEST = 499

# Forbids browsers to guess another type, for example to take a log for a page (Fetch standard).
_NO_SNIFFING = ("x-content-type-options", "nosniff")

Body = AsyncGenerator[bytes, None]

_log = structlog.get_logger("nixery.server")


class Application:
    """Routes requests. A plain callable: a framework costs more than everything else that a cached answer costs.

    Args:
        registry: answers below ``/v2/``; ``None`` for no registry.
        observation: records each request.
        others: handlers of other paths, by path.
        below: handlers of the rest, by prefix of the path; the first match wins.
        public_url: scheme and host by which clients reach this server; ``None`` to use each request's own.
        error_page: makes the page of an error, for people; ``None`` for errors in JSON only.
        access: identifies who sends a request; ``None`` without rules: everybody may do everything.
        encrypted: whether the server has TLS.
    """

    def __init__(  # noqa: PLR0913 -- for each kind of path, and for what all have
        self,
        registry: Handler | None,
        observation: Observation,
        others: Mapping[str, Handler],
        below: Mapping[str, Handler] | None = None,
        *,
        public_url: str | None = None,
        error_page: Callable[[Request, ErrorResponse], Response] | None = None,
        access: AccessControl | None = None,
        encrypted: bool = False,
    ) -> None:
        self._access = access
        self._registry = registry
        self.observation = observation
        self._others = others
        self._below = tuple((below or {}).items())
        self._public_url = public_url
        self._error_page = error_page
        self._encrypted = encrypted

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        method, path, query = scope.method, scope.path, scope.query_string
        headers = _joined(scope.headers)
        if "host" not in headers and scope.http_version == "2" and scope.authority:
            headers = {**headers, "host": scope.authority}
        forwarded = False
        if not FROM_PROXIES.isdisjoint(headers):
            forwarded = is_forwarded(headers)
            headers = self.observation.clients.trusted_headers(headers, scope.client)
        request = Request(
            method, path, headers, {}, b"", forwarded, self._public_url, encrypted=self._encrypted
        )
        observed = self.observation.begin(request, scope)
        # A client of HTTP/2 has a few streams at once, and could otherwise have any number of requests wait.
        if self._encrypted and scope.http_version == "2":
            observed.watch(protocol.client_disconnect)
        try:
            response, body = await self._answer(request, query, scope, protocol, observed)
            # Before sending: afterwards, the web server's threads would wait for it.
            self.observation.end(observed, request, response)
            fields = [*response.headers.items(), (REQUEST_ID, observed.id), _NO_SNIFFING]
            if body is None:
                _send(method, response, fields, protocol)
            else:
                await send_body(request, response, body, fields, protocol, Backpressure(scope.client))
        except asyncio.CancelledError:
            if not observed.abandoned:
                raise
            # The web server needs an answer, although the client has disconnected.
            protocol.response_empty(_CLIENT_CLOSED_REQUEST, [(REQUEST_ID, observed.id)])
        finally:
            self.observation.leave(observed)

    async def _answer(
        self, request: Request, query: str, scope: Scope, protocol: AnswerProtocol, observed: Observed
    ) -> tuple[Response, Body | None]:
        """Return the answer, and its body if that is a stream; see ``start_body``."""
        try:
            answer: Response | None = refusal(request, query, scope)
            if answer is None:
                if query:
                    parameters = dict(parse_qsl(query, keep_blank_values=True))
                    request = replace(request, query=parameters, query_string=query)
                if request.method == "POST" and request.path.startswith(_BODY_PREFIXES):
                    request, answer = await _with_body(request, protocol)
            if answer is None and self._access is not None:
                request, answer = await self._access.admit(request, observed)
            if answer is None:
                handler = self._handler(request.path)
                answer = _not_found() if handler is None else await handler(request)
            if isinstance(answer, ErrorResponse) and self._error_page is not None and _is_for_person(request):
                answer = self._error_page(request, answer)
            if self._access is not None:
                answer = self._access.finish(request, answer)
            if not isinstance(answer, StreamResponse) or request.method == "HEAD":
                return answer, None
            return await start_body(answer)
        except Exception:  # noqa: BLE001 -- a defect: logged with its traceback, and answered without it
            _log.exception("request failed", method=request.method, path=request.path[:_LOGGED])
            return error_response(InternalError(None)), None

    def _handler(self, path: str) -> Handler | None:
        if path.startswith("/v2/") or path == "/v2":
            return self._registry
        handler = self._others.get(path)
        if handler is not None:
            return handler
        return next((handler for beginning, handler in self._below if path.startswith(beginning)), None)


async def start_body(response: StreamResponse) -> tuple[Response, Body | None]:
    """Read the first piece of a body before the status is sent, so that an early error still becomes an error response.

    Returns:
        The response, and its body; an error response has none.
    """
    body = response.begin()
    try:
        first = await anext(body, b"")
    except NixeryError as error:
        return error_response(error), None
    return response, _chained(first, body)


async def send_body(
    request: Request,
    response: Response,
    body: Body,
    headers: Fields,
    protocol: AnswerProtocol,
    backpressure: Backpressure,
) -> None:
    """Send a body, as fast as the client reads, until it ends, cannot be read any further, or the client disconnects."""
    if response.length is not None:
        headers.append(("content-length", str(response.length)))
    # Closed at once: the body of a client that has disconnected holds nothing open.
    async with aclosing(body):
        transport = protocol.response_stream(response.status, headers)
        try:
            with suppress(ProtocolClosed):
                async for piece in body:
                    if not await backpressure.admit(len(piece)):
                        break
                    await transport.send_bytes(piece)
        except StorageError as error:
            # The client sees that bytes are missing, and resumes.
            _log.warning("response body truncated", path=request.path, reason=str(error))


async def _chained(first: bytes, rest: Body) -> Body:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _is_for_person(request: Request) -> bool:
    """Whether a person reads the answer.

    Java's HTTP client accepts HTML unless told otherwise, and so do registry clients in Java. These do not
    identify as browsers.
    """
    if request.path.startswith(_PROGRAM_PREFIXES) and not request.headers.get("user-agent", "").startswith(
        "Mozilla/"
    ):
        return False
    return prefers_html(request)


def _not_found() -> Response:
    message = "this is a container registry: pull an image, for example HOST/shell/git"
    return errors_body(404, "UNSUPPORTED", message)


async def _with_body(request: Request, protocol: AnswerProtocol) -> tuple[Request, Response | None]:
    """Wait for the body; return the request with it, or an error answer if it does not arrive."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            return replace(request, body=await _read_body(protocol)), None
    except TimeoutError:
        message = f"the body of the request did not arrive within {_BODY_TIMEOUT:.0f} seconds"
        # Later bytes on this connection are not a request (RFC 9110, 15.5.9).
        return request, errors_body(408, "UNSUPPORTED", message, headers={"Connection": "close"})


async def _read_body(protocol: AnswerProtocol) -> bytes | None:
    body = bytearray()
    pieces = 0
    async for chunk in protocol:
        body += chunk
        pieces += 1
        if len(body) > _LARGEST_BODY or pieces > _MOST_PIECES:
            return None
    return bytes(body)


def _joined(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


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
        # The web server reads the file, and answers 404 if it was deleted meanwhile.
        case FileResponse(status, path, part=ByteRange(first, last)):
            protocol.response_file_range(status, headers, str(path), first, last + 1)
        case FileResponse(status, path):
            protocol.response_file(status, headers, str(path))
