"""Style sheet, script and icon, under addresses that have a hash of their content."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

from nixery.server.compression import accepts_gzip, gzipped
from nixery.server.http import IMMUTABLE, BytesResponse, Request

_TYPES = {
    "site.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

# Characters of a hash: 64 bits.
_HASH = 16

_NAME = re.compile(r"([a-z]+)(?:\.([0-9a-f]{16}))?\.([a-z]+)", re.ASCII)


class StaticFiles:
    """The files, in memory and compressed once."""

    def __init__(self) -> None:
        directory = files("nixery.server.pages") / "static"
        self._contents = {name: (directory / name).read_bytes() for name in _TYPES}
        self._compressed = {name: gzipped(content) for name, content in self._contents.items()}
        self._hashes = {
            name: hashlib.sha256(content).hexdigest()[:_HASH] for name, content in self._contents.items()
        }

    def address(self, name: str) -> str:
        """Return the path of a file: another one whenever its content changes, so that browsers may keep it."""
        stem, _, suffix = name.partition(".")
        return f"/static/{stem}.{self._hashes[name]}.{suffix}"

    def answer(self, request: Request, name: str) -> BytesResponse | None:
        """Answer with a file; ``None`` if there is none of that name.

        During a rollout, the page of one version may load a file from a server of another version. So a name
        with any hash gets the current file, which only the client with the right hash may keep.
        """
        match = _NAME.fullmatch(name)
        plain = f"{match[1]}.{match[3]}" if match is not None else ""
        if match is None or plain not in _TYPES:
            return None
        is_current = match[2] == self._hashes[plain]
        headers = {
            "Content-Type": _TYPES[plain],
            "Cache-Control": IMMUTABLE if is_current else "no-cache",
            "Vary": "Accept-Encoding",
        }
        if accepts_gzip(request):
            return BytesResponse(200, self._compressed[plain], {**headers, "Content-Encoding": "gzip"})
        return BytesResponse(200, self._contents[plain], headers)
