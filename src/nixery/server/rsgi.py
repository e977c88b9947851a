"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol
from urllib.parse import parse_qsl

import structlog

from nixery.errors import StorageError
from nixery.server.observation import REQUEST_ID, Observation
from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response, StreamResponse

Fields = list[tuple[str, str]]
Handler = Callable[[Request], Awaitable[Response]]

_INTERNAL = "internal error; the server's log has the details"

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


class Transport(Protocol):
    """Takes a body in pieces; it is over when the request's coroutine is."""

    async def send_bytes(self, data: bytes, /) -> None:
        """Send one piece."""
        ...


class AnswerProtocol(Protocol):
    """Takes an answer: exactly one call of these."""

    def response_empty(self, status: int, headers: Fields, /) -> None: ...  # noqa: D102
    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None: ...  # noqa: D102
    def response_file(self, status: int, headers: Fields, file: str, /) -> None: ...  # noqa: D102
    def response_file_range(  # noqa: D102 -- the end is excluded
        self, status: int, headers: Fields, file: str, start: int, end: int, /
    ) -> None: ...
    def response_stream(self, status: int, headers: Fields, /) -> Transport: ...  # noqa: D102


class Application:
    """Routes to the registry. A plain callable: a framework would cost more than all we do for a cached answer.

    Args:
        registry: answers below ``/v2/``.
        observation: notes each request.
        others: what answers elsewhere, by path.
    """

    def __init__(self, registry: Registry, observation: Observation, others: Mapping[str, Handler]) -> None:
        self._registry = registry
        self._observation = observation
        self._others = others

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        request = Request(scope.method, scope.path, _headers(scope.headers), _query(scope.query_string))
        observed = self._observation.begin(request)
        response = await self._answer(request)
        chunks: AsyncIterator[bytes] | None = None
        if isinstance(response, StreamResponse) and request.method != "HEAD":
            response, chunks = await _begun(request, response)
        # Before it is sent: afterwards, the web server's threads would wait for it.
        self._observation.end(observed, request, scope, response)
        if chunks is None:
            _send(request.method, response, observed.id, protocol)
        else:
            await _stream(request, response, chunks, observed.id, protocol)

    async def _answer(self, request: Request) -> Response:
        try:
            if request.path == "/v2" or request.path.startswith("/v2/"):
                return await self._registry.answer(request)
            handler = self._others.get(request.path)
            if handler is not None:
                return await handler(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return errors_body(500, "UNKNOWN", _INTERNAL)
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)


def _headers(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _query(raw: str) -> Mapping[str, str]:
    return dict(parse_qsl(raw, keep_blank_values=True)) if raw else {}


async def _begun(request: Request, response: StreamResponse) -> tuple[Response, AsyncIterator[bytes] | None]:
    """Read the first piece before the status is sent: what cannot be read at all is an error that can be told."""
    chunks = response.begin()
    try:
        first = await anext(chunks, b"")
    except StorageError:
        _log.exception("request failed", method=request.method, path=request.path)
        return errors_body(500, "UNKNOWN", _INTERNAL), None
    return response, _following(first, chunks)


async def _following(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _stream(
    request: Request,
    response: Response,
    chunks: AsyncIterator[bytes],
    request_id: str,
    protocol: AnswerProtocol,
) -> None:
    headers = [*response.headers.items(), (REQUEST_ID, request_id), ("content-length", str(response.length))]
    transport = protocol.response_stream(response.status, headers)
    try:
        async for chunk in chunks:
            await transport.send_bytes(chunk)
    except StorageError as error:
        # The client sees that bytes are missing, and comes back for them.
        _log.warning("a transfer broke off", path=request.path, reason=str(error))


def _send(method: str, response: Response, request_id: str, protocol: AnswerProtocol) -> None:
    headers = [*response.headers.items(), (REQUEST_ID, request_id)]
    if isinstance(response, NotModified):
        protocol.response_empty(response.status, headers)
        return
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
