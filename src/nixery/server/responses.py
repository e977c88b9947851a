"""What a handler answers. Only ``asgi.py`` knows how that gets onto the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BytesResponse:
    """A body from memory. ``Content-Length`` is added on the way out."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileResponse:
    """A whole file, which the web server sends without a detour through Python.

    Attributes:
        size: of the file in bytes.
    """

    path: Path
    size: int
    headers: Mapping[str, str] = field(default_factory=dict)


Response = BytesResponse | FileResponse
