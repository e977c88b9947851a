"""What a handler is asked.

Byte ranges (RFC 9110, section 14): what clients use to go on with a blob that broke off.

Conditional requests (RFC 9110, section 13).

What granian hands the application, as far as we use it (its docs/spec/RSGI.md).

What a handler answers. Only ``rsgi.py`` knows how that gets onto the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nixery.plain_text import escaped_document, escaped_lines


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


_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a representation; both ends are included and inside of it."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.last - self.first + 1


class UnsatisfiableRange(Exception):
    """The range is valid, but nothing of the representation is in it."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Read a ``Range`` header.

    Returns:
        The range, clamped to the representation; ``None`` to answer with all of it: there is no header, it has another unit
        or several ranges (RFC 9110, 14.2 allows to ignore it), or its end lies before its beginning (14.1.1).

    Raises:
        UnsatisfiableRange: it begins behind the end, or asks for the last zero bytes.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        suffix = int(last)
        if suffix == 0 or size == 0:
            raise UnsatisfiableRange
        return ByteRange(max(0, size - suffix), size - 1)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRange
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1)


# Characters of a header field that are parsed: a hundred digests.
_LONGEST = 8192


def matches(request: Request, etag: str) -> bool:
    """Whether ``If-None-Match`` says that the client has this representation; weak comparison, as 13.1.2 asks."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    candidates = [candidate.strip().removeprefix("W/") for candidate in header[:_LONGEST].split(",")]
    return "*" in candidates or etag in candidates


Fields = list[tuple[str, str]]


class Headers(Protocol):
    """Header fields of a request, names in lower case."""

    def items(self) -> Fields:
        """All of them, a name as often as it came."""
        ...


class Scope(Protocol):
    """The part of a request that we use; the path is percent-decoded, and HTTP/1.0 is version ``1``."""

    http_version: str
    method: str
    path: str
    query_string: str
    client: str
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
    def __aiter__(self) -> AsyncIterator[bytes]: ...  # the body of the request


# Content under its digest cannot change.
IMMUTABLE = "public, max-age=31536000, immutable"


def json_content(document: Mapping[str, Any], escape: Callable[[str], str] = escaped_lines) -> bytes:
    """Serialise a public document, with untrusted text made safe for a terminal and a page.

    Args:
        document: may have texts of several lines; they keep their line breaks.
        escape: of texts.
    """
    return json.dumps(escaped_document(document, escape), ensure_ascii=False).encode()


# Responses are never changed once made. They are not frozen: that would double the time to make one.


@dataclass(slots=True)
class BytesResponse:
    """A body from memory. ``Content-Length`` is added on the way out."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.content)


@dataclass(slots=True)
class FileResponse:
    """A file, which the web server sends without a detour through Python, or a part of it.

    Attributes:
        size: of the file in bytes.
        part: what to send of it; ``None`` for all.
    """

    status: int
    path: Path
    size: int
    part: ByteRange | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.size if self.part is None else self.part.length


@dataclass(slots=True)
class StreamResponse:
    """A body that comes from somewhere else while it is sent.

    Attributes:
        length: in bytes; ``None`` if nobody knows.
        begin: begins to read it; not called for HEAD.
    """

    status: int
    length: int | None
    begin: Callable[[], AsyncGenerator[bytes, None]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class NotModified:
    """The client has it already (RFC 9110, section 15.4.5): no body, no length."""

    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 304

    @property
    def length(self) -> int:
        """Bytes of the body: there is none."""
        return 0


Response = BytesResponse | FileResponse | StreamResponse | NotModified
