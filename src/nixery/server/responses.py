"""What a handler answers. Only ``rsgi.py`` knows how that gets onto the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nixery.plain_text import escaped_document, escaped_lines
from nixery.server.ranges import ByteRange

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
