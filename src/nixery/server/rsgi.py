"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from urllib.parse import parse_qsl

import structlog

from nixery.server.observation import REQUEST_ID, Observation
from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response

Fields = list[tuple[str, str]]
Handler = Callable[[Request], Awaitable[Response]]

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
        # Before it is sent: afterwards, the web server's threads would wait for it.
        self._observation.end(observed, request, scope, response)
        _send(request.method, response, observed.id, protocol)

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
            return errors_body(500, "UNKNOWN", "internal error; the server's log has the details")
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)


def _headers(raw: Headers) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _query(raw: str) -> Mapping[str, str]:
    return dict(parse_qsl(raw, keep_blank_values=True)) if raw else {}


def _send(method: str, response: Response, request_id: str, protocol: AnswerProtocol) -> None:
    headers = [*response.headers.items(), (REQUEST_ID, request_id)]
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
