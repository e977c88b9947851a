"""Compressed answers: pages, documents of the API, and static files.

The answers of the registry are not compressed: layers are already, and clients verify the bytes of manifests.
The length of a compressed answer leaks what is in it to an attacker who chooses another part of it, and sees the length
on the network (BREACH). No answer has a secret such as a session or a token in its body: sessions are in cookies, forms
need no tokens, and the pages of the login are not compressed. But with access rules, pages show names that only their
reader may see, beside a search text or a path that anyone can choose in a link. Such a request comes from a page of
another site, and browsers say so: its answer is not compressed.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

from nixery.server.clients import is_of_own_site
from nixery.server.http import BytesResponse, Request, Response, elements

# Bytes below which the header fields would outweigh the saving.
_SMALLEST = 1024

# Bytes that are compressed on the event loop, in half a millisecond. A thread compresses larger bodies.
_SMALL = 32 * 1024

# Twice as fast as the default level, and a tenth larger.
_LEVEL = 4
_BEST = 9

_GZIP = 16 + zlib.MAX_WBITS

_TYPES = ("text/", "application/json", "image/svg+xml")

_VARY = {"Vary": "Accept-Encoding"}


def gzipped(content: bytes, level: int = _BEST) -> bytes:
    """Compress a body. The result depends on the content alone: it has no time and no file name."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
    return compressor.compress(content) + compressor.flush()


def accepts_gzip(request: Request) -> bool:
    """Whether the client accepts gzip (RFC 9110, 12.5.3)."""
    for coding in elements(request, "accept-encoding"):
        name, *parameters = (part.strip() for part in coding.lower().split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(
                parameter.startswith("q=0") and not parameter.strip("q=0.") for parameter in parameters
            )
    return False


async def compressed(request: Request, response: Response) -> Response:
    """Compress an answer if its client accepts that, and it is text of some size; return others as they are."""
    if not isinstance(response, BytesResponse) or "Content-Encoding" in response.headers:
        return response
    kind = response.headers.get("Content-Type", "")
    if len(response.content) < _SMALLEST or not kind.startswith(_TYPES):
        return response
    headers = {**response.headers, **_VARY}
    if not accepts_gzip(request) or not is_of_own_site(request):
        return replace(response, headers=headers)
    if len(response.content) <= _SMALL:
        content = gzipped(response.content, _LEVEL)
    else:
        content = await asyncio.to_thread(gzipped, response.content, _LEVEL)
    return replace(response, content=content, headers={**headers, "Content-Encoding": "gzip"})
