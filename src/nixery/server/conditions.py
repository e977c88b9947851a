"""Conditional requests (RFC 9110, section 13)."""

from __future__ import annotations

from nixery.server.requests import Request

# Characters of a header field that are parsed: a hundred digests.
_LONGEST = 8192


def matches(request: Request, etag: str) -> bool:
    """Whether ``If-None-Match`` says that the client has this representation; weak comparison, as 13.1.2 asks."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    candidates = [candidate.strip().removeprefix("W/") for candidate in header[:_LONGEST].split(",")]
    return "*" in candidates or etag in candidates
