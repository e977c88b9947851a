"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qsl

import structlog

from nixery.errors import StorageError
from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response, StreamResponse

Fields = list[tuple[str, str]]

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
    """Routes to the registry. A plain callable: a framework would cost more than all we do for a cached answer."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __rsgi__(self, scope: Scope, protocol: AnswerProtocol) -> None:
        """Answer one request."""
        request = Request(scope.method, scope.path, _headers(scope.headers), _query(scope.query_string))
        response = await self._answer(request)
        if isinstance(response, StreamResponse) and request.method != "HEAD":
            await _stream(request, response, protocol)
        else:
            _send(request.method, response, protocol)

    async def _answer(self, request: Request) -> Response:
        if request.path != "/v2" and not request.path.startswith("/v2/"):
            message = "this is a container registry: pull an image, for example HOST/shell/git"
            return errors_body(404, "UNSUPPORTED", message)
        try:
            return await self._registry.answer(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return errors_body(500, "UNKNOWN", _INTERNAL)


def _headers(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _query(raw: str) -> Mapping[str, str]:
    return dict(parse_qsl(raw, keep_blank_values=True)) if raw else {}


async def _stream(request: Request, response: StreamResponse, protocol: AnswerProtocol) -> None:
    chunks = response.begin()
    try:
        # Before the status is sent: what cannot be read at all is an error that can be told.
        chunk = await anext(chunks, b"")
    except StorageError:
        _log.exception("request failed", method=request.method, path=request.path)
        _send(request.method, errors_body(500, "UNKNOWN", _INTERNAL), protocol)
        return
    headers = [*response.headers.items(), ("content-length", str(response.length))]
    transport = protocol.response_stream(response.status, headers)
    try:
        await transport.send_bytes(chunk)
        async for following in chunks:
            await transport.send_bytes(following)
    except StorageError as error:
        # The client sees that bytes are missing, and comes back for them.
        _log.warning("a transfer broke off", path=request.path, reason=str(error))


def _send(method: str, response: Response, protocol: AnswerProtocol) -> None:
    headers = list(response.headers.items())
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
