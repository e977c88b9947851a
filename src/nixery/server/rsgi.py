"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Protocol
from urllib.parse import parse_qsl

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.server.observation import REQUEST_ID, Observation
from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response, StreamResponse

Fields = list[tuple[str, str]]
Handler = Callable[[Request], Awaitable[Response]]

# Where bodies are read, and bytes of one. What comes to the registry has none that matters.
_TAKES_BODIES = "/api/"
_LARGEST_BODY = 16 * 1024

_log = structlog.get_logger("nixery.server")


class Headers(Protocol):
    """Header fields of a request, names in lower case."""

    def items(self) -> Fields:
        """All of them, a name as often as it came."""
        ...


class Scope(Protocol):
    """A request, as far as we care; the path is percent-decoded."""

    method: str
    path: str
    query_string: str
    client: str
    headers: Headers


class AnswerProtocol(Protocol):
    """Takes an answer: exactly one call of these."""

    def response_empty(self, status: int, headers: Fields, /) -> None: ...  # noqa: D102
    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None: ...  # noqa: D102
    def response_file(self, status: int, headers: Fields, file: str, /) -> None: ...  # noqa: D102
    def response_file_range(  # noqa: D102 -- the end is excluded
        self, status: int, headers: Fields, file: str, start: int, end: int, /
    ) -> None: ...
    def response_stream(self, status: int, headers: Fields, /) -> StreamTransport: ...  # noqa: D102
    def __aiter__(self) -> AsyncIterator[bytes]: ...  # the body of the request


class StreamTransport(Protocol):
    """Takes the body of an answer bit by bit."""

    async def send_bytes(self, data: bytes, /) -> None: ...  # noqa: D102


class Application:
    """Routes to the parts of the server. A plain callable: a framework would cost more than all we do for a cached answer.

    Args:
        registry: answers below ``/v2/``.
        observation: notes each request.
        others: what answers elsewhere, by path.
        below: what answers the rest, by how paths begin; the first that fits.
    """

    def __init__(
        self,
        registry: Registry,
        observation: Observation,
        others: Mapping[str, Handler],
        below: Mapping[str, Handler] | None = None,
    ) -> None:
        self._registry = registry
        self._observation = observation
        self._others = others
        self._below = tuple((below or {}).items())

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        method, path = scope.method, scope.path
        body = await _body(protocol) if method == "POST" and path.startswith(_TAKES_BODIES) else b""
        request = Request(method, path, _headers(scope.headers), _query(scope.query_string), body)
        observed = self._observation.begin(request)
        response = await self._answer(request)
        # Before it is sent: afterwards, the web server's threads would wait for it.
        self._observation.end(observed, request, scope, response)
        headers = [*response.headers.items(), (REQUEST_ID, observed.id)]
        if isinstance(response, StreamResponse):
            await _stream(method, response, headers, protocol)
        else:
            _send(method, response, headers, protocol)

    async def _answer(self, request: Request) -> Response:
        try:
            handler = self._handler(request.path)
            if handler is not None:
                return await handler(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return errors_body(500, "UNKNOWN", "internal error; the server's log has the details")
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)

    def _handler(self, path: str) -> Handler | None:
        if path == "/v2" or path.startswith("/v2/"):
            return self._registry.answer
        handler = self._others.get(path)
        if handler is not None:
            return handler
        return next((handler for beginning, handler in self._below if path.startswith(beginning)), None)


async def _body(protocol: AnswerProtocol) -> bytes | None:
    body = b""
    async for chunk in protocol:
        body += chunk
        if len(body) > _LARGEST_BODY:
            return None
    return body


async def _stream(method: str, response: StreamResponse, headers: Fields, protocol: AnswerProtocol) -> None:
    async with aclosing(response.chunks) as chunks:
        if method == "HEAD":
            protocol.response_empty(response.status, headers)
            return
        transport = protocol.response_stream(response.status, headers)
        with suppress(ProtocolClosed):  # the client has gone
            async for chunk in chunks:
                await transport.send_bytes(chunk)


def _headers(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _query(raw: str) -> Mapping[str, str]:
    return dict(parse_qsl(raw, keep_blank_values=True)) if raw else {}


def _send(
    method: str,
    response: BytesResponse | FileResponse | NotModified,
    headers: Fields,
    protocol: AnswerProtocol,
) -> None:
    if isinstance(response, NotModified):
        protocol.response_empty(response.status, headers)
        return
    headers.append(("content-length", str(response.length)))
    match response:
        case BytesResponse() | FileResponse() if method == "HEAD":
            protocol.response_empty(response.status, headers)
        case BytesResponse(status, content):
            protocol.response_bytes(status, headers, content)
        # Files are read by the web server, outside of the interpreter. If one has gone meanwhile, it answers 404.
        case FileResponse(status, path, part=ByteRange(first, last)):
            protocol.response_file_range(status, headers, str(path), first, last + 1)
        case FileResponse(status, path):
            protocol.response_file(status, headers, str(path))
