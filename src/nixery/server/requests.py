"""What a handler is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


# Not frozen: that would cost a microsecond and a half for each request, a tenth of all that a cached answer takes here.
@dataclass(eq=False, slots=True)
class Request:
    """A request, as handlers see it. Handlers do not change it.

    Attributes:
        method: in upper case.
        path: percent-decoded, beginning with a slash.
        headers: the trusted ones, by name in lower case; repeated ones are joined with commas.
        query: parameters by name; of a repeated one, the last.
        body: for routes that take one; ``None`` if it is too large.
        forwarded: whether a header field says that a proxy passed it on, trusted or not.
        public_url: scheme and host by which clients reach us, if known.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = b""
    forwarded: bool = False
    public_url: str | None = None
