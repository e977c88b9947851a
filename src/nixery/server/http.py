"""HTTP as handlers see it: requests, responses, byte ranges and conditions; and the web server's interface below."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nixery.builds.slots import Slots
from nixery.errors import TooBusy
from nixery.plain_text import escaped_document, escaped_lines

# Content under its digest cannot change.
IMMUTABLE = "public, max-age=31536000, immutable"

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)

# Of a list in a header field, characters and elements that are read: a hundred digests. A field of 128 KiB may have as
# many elements as characters, and takes the event loop a microsecond for each.
_LONGEST_LIST, _MOST_ELEMENTS = 8192, 128

# The weight of a media type (RFC 9110, 12.4.2).
_WEIGHT = re.compile(r"[01](?:\.\d{0,3})?", re.ASCII)

# Answers that are written at once, and that wait: package authors decide how long their texts are, and how many
# characters have to be escaped. A page takes up to a quarter of a second.
_WRITTEN_AT_ONCE, _QUEUE = 1, 64

Written = TypeVar("Written")


# Not frozen, as the responses below: that would cost a microsecond and a half, a tenth of a cached answer.
@dataclass(eq=False, slots=True)
class Request:
    """A request. Handlers do not change it.

    Attributes:
        method: in upper case.
        path: percent-decoded, beginning with a slash.
        headers: the trusted ones, by name in lower case; repeated ones are joined with commas.
        query: parameters by name; of a repeated one, the last.
        body: for routes that take one; ``None`` if it is too large.
        forwarded: whether a header field says that a proxy forwarded the request, trusted or not.
        public_url: scheme and host by which clients reach this server, if configured.
        query_string: undecoded.
        repositories: names of images that the credentials are for; ``None`` for all.
        catalog: whether the credentials can be used to list images.
        encrypted: whether it came over this server's own TLS.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = b""
    forwarded: bool = False
    public_url: str | None = None
    query_string: str = ""
    repositories: frozenset[str] | None = None
    catalog: bool = True
    encrypted: bool = False


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
    """The range is valid, but no byte of the representation is in it."""


@dataclass(slots=True)
class BytesResponse:
    """A body from memory. ``Content-Length`` is added when it is sent."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.content)


@dataclass(slots=True)
class ErrorResponse(BytesResponse):
    """An error in the form of the specification, which a person may get as a page instead.

    Attributes:
        message: for the user of the client; one line, escaped.
        title: a heading for it; empty for one that its status gives.
    """

    message: str = ""
    title: str = ""


@dataclass(slots=True)
class FileResponse:
    """A file or a part of it, which the web server reads and sends without the interpreter.

    Attributes:
        size: of the file in bytes.
        part: the range to send; ``None`` for all.
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
    """A body that is produced while it is sent.

    Attributes:
        length: in bytes; ``None`` if unknown.
        begin: begins to read it; not called for HEAD.
    """

    status: int
    length: int | None
    begin: Callable[[], AsyncGenerator[bytes, None]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class NotModified:
    """The client has the representation already (RFC 9110, 15.4.5): no body, no length."""

    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 304

    @property
    def length(self) -> int:
        """Bytes of the body: none."""
        return 0


Response = BytesResponse | FileResponse | StreamResponse | NotModified


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a ``Range`` header (RFC 9110, section 14).

    Returns:
        The range, clamped to the representation; ``None`` to answer with all of it: there is no header, it
        has another unit or several ranges (14.2 allows to ignore it), or its end lies before its beginning
        (14.1.1).

    Raises:
        UnsatisfiableRange: it begins after the end, or asks for the last zero bytes.
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


def elements(request: Request, field: str) -> list[str]:
    """Return the elements of a list in a header field (RFC 9110, 5.6.1), at most the first 128.

    They are not stripped. A missing field has one empty element.

    Args:
        request: with the field.
        field: its name in lower case.
    """
    return request.headers.get(field, "")[:_LONGEST_LIST].split(",", _MOST_ELEMENTS)[:_MOST_ELEMENTS]


def matches(request: Request, etag: str) -> bool:
    """Whether ``If-None-Match`` names this representation; weak comparison (RFC 9110, 13.1.2)."""
    if "if-none-match" not in request.headers:
        return False
    candidates = [candidate.strip().removeprefix("W/") for candidate in elements(request, "if-none-match")]
    return "*" in candidates or etag in candidates


def prefers_html(request: Request) -> bool:
    """Whether a person reads the answer: the client accepts HTML, and prefers it to JSON (RFC 9110, 12.5.1)."""
    weights: dict[str, float] = {}
    for accepted in elements(request, "accept"):
        kind, *parameters = (part.strip() for part in accepted.lower().split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[kind] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    html = weights.get("text/html", 0.0)
    return html > 0 and html >= weights.get("application/json", 0.0)


def json_content(document: Mapping[str, Any], escape: Callable[[str], str] = escaped_lines) -> bytes:
    """Serialise a public document, with untrusted text made safe for a terminal and a page.

    Args:
        document: may have texts of several lines; they keep their line breaks.
        escape: applied to each text.
    """
    return json.dumps(escaped_document(document, escape), ensure_ascii=False).encode()


# The web server's interface, as far as this package uses it: RSGI, specified by granian.

Fields = list[tuple[str, str]]


class Headers(Protocol):
    """Header fields of a request, names in lower case, repeated ones repeatedly."""

    def items(self) -> Fields: ...  # noqa: D102


class Scope(Protocol):
    """A request; the path is percent-decoded, HTTP/1.0 is version ``1``, and HTTP/2 has an authority instead of a host.

    Each reading of ``client`` formats the address anew, which costs as much as recording a request.
    """

    http_version: str
    method: str
    path: str
    query_string: str
    client: str
    headers: Headers
    authority: str | None


class Transport(Protocol):
    """Takes a body in pieces; the body ends when the request's coroutine does."""

    async def send_bytes(self, data: bytes, /) -> None: ...  # noqa: D102


class AnswerProtocol(Protocol):
    """Yields the body of the request, and takes an answer: exactly one call. ``end`` is excluded."""

    def response_empty(self, status: int, headers: Fields, /) -> None: ...  # noqa: D102
    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None: ...  # noqa: D102
    def response_file(self, status: int, headers: Fields, file: str, /) -> None: ...  # noqa: D102
    def response_file_range(  # noqa: D102
        self, status: int, headers: Fields, file: str, start: int, end: int, /
    ) -> None: ...
    def response_stream(self, status: int, headers: Fields, /) -> Transport: ...  # noqa: D102
    async def client_disconnect(self) -> None: ...  # noqa: D102 -- returns once the client has left
    def __aiter__(self) -> AsyncIterator[bytes]: ...


Handler = Callable[[Request], Awaitable[Response]]


class AnswerWriter:
    """Writes answers with texts of package authors in a thread; clients take turns."""

    def __init__(self) -> None:
        self._slots = Slots(_WRITTEN_AT_ONCE, _QUEUE, busy=TooBusy.ANSWERS)

    async def write(self, answer: Callable[[], Written]) -> Written:
        """Call a function that writes an answer.

        Raises:
            TooBusy: too many answers are waiting.
        """
        async with self._slots.slot():
            return await asyncio.to_thread(answer)
