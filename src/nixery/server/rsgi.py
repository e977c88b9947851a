"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Protocol
from urllib.parse import parse_qsl

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response, StreamResponse

Fields = list[tuple[str, str]]

# Bytes of a body that is read. What comes to the registry has none that matters.
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


class Handler(Protocol):
    """Answers requests for a part of all paths."""

    async def answer(self, request: Request) -> Response:
        """Answer a request; never raises for anything a client can do."""
        ...


class Application:
    """Routes to the parts of the server. A plain callable: a framework would cost more than all we do for a cached answer.

    Args:
        registry: answers below ``/v2``.
        api: answers below ``/api``.
        pages: answers everything else.
    """

    def __init__(self, registry: Handler, api: Handler | None = None, pages: Handler | None = None) -> None:
        self._registry = registry
        self._api = api
        self._pages = pages

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        method, path = scope.method, scope.path
        body = await _body(protocol) if method == "POST" and path.startswith("/api/") else b""
        request = Request(method, path, _headers(scope.headers), _query(scope.query_string), body)
        response = await self._answer(request)
        if isinstance(response, StreamResponse):
            await _stream(method, response, protocol)
        else:
            _send(method, response, protocol)

    async def _answer(self, request: Request) -> Response:
        handler = self._handler(request.path)
        if handler is None:
            message = "this is a container registry: pull an image, for example HOST/shell/git"
            return errors_body(404, "UNSUPPORTED", message)
        try:
            return await handler.answer(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return errors_body(500, "UNKNOWN", "internal error; the server's log has the details")

    def _handler(self, path: str) -> Handler | None:
        if path == "/v2" or path.startswith("/v2/"):
            return self._registry
        return self._api if path.startswith("/api/") else self._pages


async def _body(protocol: AnswerProtocol) -> bytes | None:
    body = b""
    async for chunk in protocol:
        body += chunk
        if len(body) > _LARGEST_BODY:
            return None
    return body


async def _stream(method: str, response: StreamResponse, protocol: AnswerProtocol) -> None:
    headers = list(response.headers.items())
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
    method: str, response: BytesResponse | FileResponse | NotModified, protocol: AnswerProtocol
) -> None:
    headers = list(response.headers.items())
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
