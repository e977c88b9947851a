"""Bodies that come while they are sent: from a bucket, or events of a build."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.errors import NixeryError, StorageError
from nixery.server.registry.errors import error_response
from nixery.server.requests import Request
from nixery.server.responses import Response, StreamResponse
from nixery.server.rsgi_interface import AnswerProtocol, Fields

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
) -> None:
    """Send a body until it is over, cannot be read any further, or the client goes."""
    if response.length is not None:
        headers.append(("content-length", str(response.length)))
    # Closed at once: a client that has gone holds nothing open behind us.
    async with aclosing(pieces):
        transport = protocol.response_stream(response.status, headers)
        try:
            with suppress(ProtocolClosed):
                async for piece in pieces:
                    await transport.send_bytes(piece)
        except StorageError as error:
            # The client sees that bytes are missing, and comes back for them.
            _log.warning("a transfer broke off", path=request.path, reason=str(error))


async def _following(first: bytes, pieces: Pieces) -> Pieces:
    async with aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece
