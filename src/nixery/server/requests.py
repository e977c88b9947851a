"""What a handler is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


# Not frozen: that would cost a microsecond and a half for each request, a tenth of all that a cached answer takes here.
@dataclass(eq=False, slots=True)
class Request:
    """A request, as far as any handler cares. Handlers change nothing in it.

    Attributes:
        method: in upper case.
        path: percent-decoded, beginning with a slash.
        headers: those that may be believed, by name in lower case; a header that came several times is joined with commas.
        query: parameters by name; of one that came several times, the last.
        body: where a route takes one; ``None`` if it is larger than any that is taken.
        forwarded: whether a proxy says that it passed it on, believed or not.
        public_url: scheme and host by which clients reach us, if that is known.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = b""
    forwarded: bool = False
    public_url: str | None = None
