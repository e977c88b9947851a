"""The ASGI application: requests in, responses out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog

from nixery.server.registry.errors import errors_body
from nixery.server.registry.router import Registry
from nixery.server.responses import BytesResponse, FileResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

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
            await _send(scope["method"], await self._answer(scope["method"], scope["path"]), send)

    async def _answer(self, method: str, path: str) -> Response:
        if path != "/v2" and not path.startswith("/v2/"):
            message = "this is a container registry: pull an image, for example HOST/shell/git"
            return errors_body(404, "UNSUPPORTED", message)
        try:
            return await self._registry.answer(method, path)
        except Exception:  # noqa: BLE001 -- logged with its traceback, and answered
            # Nothing a client does may lead here. If something does, the traceback is for us and not for him.
            _log.exception("request failed", method=method, path=path)
            return errors_body(500, "UNKNOWN", "internal error; the server's log has the details")


async def _send(method: str, response: Response, send: Send) -> None:
    if isinstance(response, BytesResponse):
        status, content, size = response.status, response.content, len(response.content)
    else:
        status, content, size = 200, b"", response.size
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    headers.append((b"content-length", b"%d" % size))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if isinstance(response, FileResponse) and method != "HEAD":
        # ASGI's path-send extension: the web server reads the file, outside of the interpreter.
        await send({"type": "http.response.pathsend", "path": str(response.path)})
    else:
        await send({"type": "http.response.body", "body": content if method != "HEAD" else b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
