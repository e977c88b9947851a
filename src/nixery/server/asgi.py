"""The ASGI application: requests in, responses out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import structlog

from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, FileResponse, NotModified, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Bytes read at a time for a part of a file; a whole file is not read here at all.
_CHUNK = 1 << 18

_log = structlog.get_logger("nixery.server")


class Application:
    """Routes to the registry. A plain callable: a framework would cost more than all we do for a cached answer."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event, as ASGI 3 has it."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            request = Request(
                scope["method"], scope["path"], _headers(scope["headers"]), _query(scope["query_string"])
            )
            await _send(request.method, await self._answer(request), send)

    async def _answer(self, request: Request) -> Response:
        if request.path != "/v2" and not request.path.startswith("/v2/"):
            message = "this is a container registry: pull an image, for example HOST/shell/git"
            return errors_body(404, "UNSUPPORTED", message)
        try:
            return await self._registry.answer(request)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=request.method, path=request.path)
            return errors_body(500, "UNKNOWN", "internal error; the server's log has the details")


def _headers(raw: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _query(raw: bytes) -> Mapping[str, str]:
    return dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True)) if raw else {}


async def _send(method: str, response: Response, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    if not isinstance(response, NotModified):
        headers.append((b"content-length", b"%d" % response.length))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if isinstance(response, FileResponse) and method != "HEAD":
        if response.part is None:
            # ASGI's path-send extension: the web server reads the file, outside of the interpreter.
            await send({"type": "http.response.pathsend", "path": str(response.path)})
        else:
            await _send_part(response.path, response.part.first, response.part.length, send)
    else:
        content = response.content if isinstance(response, BytesResponse) and method != "HEAD" else b""
        await send({"type": "http.response.body", "body": content})


async def _send_part(path: os.PathLike[str], first: int, length: int, send: Send) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = length
        while left:
            chunk = await asyncio.to_thread(os.pread, descriptor, min(left, _CHUNK), first + length - left)
            if not chunk:
                # Shorter than it was a moment ago. Ending here lets the client see that something is missing.
                return
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
    finally:
        os.close(descriptor)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
