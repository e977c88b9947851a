"""The application as the web server calls it: requests in, responses out.

RSGI is granian's own interface (its docs/spec/RSGI.md). Unlike ASGI it has a call for a part of a file, and takes an answer as a
whole, which costs half as much for a small one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

import structlog

from nixery.errors import InternalError
from nixery.server.observation import REQUEST_ID, Observation
from nixery.server.ranges import ByteRange
from nixery.server.registry.errors import error_response, errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response, StreamResponse
from nixery.server.rsgi_interface import AnswerProtocol, Fields, Headers, Scope
from nixery.server.streaming import begun, send_pieces

Handler = Callable[[Request], Awaitable[Response]]

# Where bodies are read, and bytes of one. What comes to the registry has none that matters.
_TAKES_BODIES = "/api/"
_LARGEST_BODY = 16 * 1024

# Seconds for a body to come. While one is waited for, its connection counts among those that the server takes.
_PATIENCE = 10.0

_log = structlog.get_logger("nixery.server")


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
        body: bytes | None = b""
        late = None
        if method == "POST" and path.startswith(_TAKES_BODIES):
            try:
                async with asyncio.timeout(_PATIENCE):
                    body = await _body(protocol)
            except TimeoutError:
                late = _late()
        request = Request(method, path, _headers(scope.headers), _query(scope.query_string), body)
        observed = self._observation.begin(request)
        response, pieces = await begun(request, late or await self._answer(request))
        # Before it is sent: afterwards, the web server's threads would wait for it.
        self._observation.end(observed, request, scope, response)
        headers = [*response.headers.items(), (REQUEST_ID, observed.id)]
        if pieces is None:
            _send(method, response, headers, protocol)
        else:
            await send_pieces(request, response, pieces, headers, protocol)

    async def _answer(self, request: Request) -> Response:
        try:
            handler = self._handler(request.path)
            if handler is not None:
                return await handler(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return error_response(InternalError(None))
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)

    def _handler(self, path: str) -> Handler | None:
        if path == "/v2" or path.startswith("/v2/"):
            return self._registry.answer
        handler = self._others.get(path)
        if handler is not None:
            return handler
        return next((handler for beginning, handler in self._below if path.startswith(beginning)), None)


def _late() -> Response:
    message = f"the body of the request did not come within {_PATIENCE:.0f} seconds"
    # What else may come on this connection is no request (RFC 9110, 15.5.9).
    return errors_body(408, "UNSUPPORTED", message, headers={"Connection": "close"})


async def _body(protocol: AnswerProtocol) -> bytes | None:
    body = b""
    async for chunk in protocol:
        body += chunk
        if len(body) > _LARGEST_BODY:
            return None
    return body


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
