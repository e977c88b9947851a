"""Templates, and the formats of numbers and times."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import nixery
from nixery.access.policy import current_access
from nixery.errors import NixeryError
from nixery.plain_text import escaped_lines
from nixery.server.errors import heading, retry_headers, status_and_code
from nixery.server.http import BytesResponse
from nixery.server.pages.api_reference import prose
from nixery.server.pages.static_files import StaticFiles

# Scripts and styles are the server's own files; nothing loads from other hosts, and no other page may frame
# these.
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

_HASH = re.compile(r"[0-9a-f]{32,}", re.ASCII)

_STORE_HASH = re.compile(r"^[0-9a-z]{32}-")

_STORE_PATH = re.compile(r"(?:/nix/store/)?\b[0-9a-z]{32}-", re.ASCII)

_THOUSAND = 1000
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_WEEK = 7  # days

# Seconds below which an estimate has no number.
_FEW = 10


class Templates:
    """Renders the templates of this package; all values are escaped.

    Args:
        static: the files that pages load; ``None`` for those of this package.
    """

    def __init__(self, static: StaticFiles | None = None) -> None:
        static = static or StaticFiles()
        self._environment = Environment(
            loader=PackageLoader("nixery.server.pages"),
            autoescape=True,
            finalize=_safe,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters = (
            size,
            size_of,
            duration,
            about,
            moment,
            day,
            ago,
            iso,
            short,
            derivation,
            breakable,
            grouped,
            prose,
            unhashed,
        )
        self._environment.filters.update({filter_.__name__: filter_ for filter_ in filters})
        self._environment.globals.update(
            static=static.address, version=nixery.__version__, access=current_access
        )

    def response(self, template: str, status: int = 200, **values: Any) -> BytesResponse:  # noqa: ANN401
        """Answer with a page."""
        content = self._environment.get_template(template).render(values)
        return BytesResponse(status, content.encode(errors="replace"), _HEADERS)

    def error(self, error: NixeryError) -> BytesResponse:
        """Answer with an error page, under a heading for the kind of error."""
        status, _ = status_and_code(error)
        page = self.response("error.html", status, title=heading(error), message=str(error))
        return replace(page, headers={**page.headers, **retry_headers(error)})


def _safe(value: object) -> object:
    """Escape characters that would reorder or hide text; HTML is escaped after this."""
    return type(value)(escaped_lines(value)) if isinstance(value, str) else value


def size(count: float) -> str:
    """Format a number of bytes, in powers of ten as registries do."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < _THOUSAND:
            return f"{count:.0f} {unit}" if unit == "B" or count >= _THOUSAND / 10 else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return f"{count:.1f} TB"


def size_of(done: float, total: float) -> str:
    """Format a part of a number of bytes: ``120 of 560 MB``."""
    part, whole = size(done), size(total)
    number, unit = part.split(" ")
    return f"{number if whole.endswith(f' {unit}') else part} of {whole}"


def duration(seconds: float | None) -> str:
    """Format a duration; empty for ``None``."""
    if seconds is None:
        return ""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    return f"{minutes} min {rest} s"


def about(seconds: float) -> str:
    """Format an estimated duration."""
    if seconds < _FEW:
        return "a few seconds"
    if seconds < _MINUTE:
        return f"about {round(seconds / 10) * 10} s"
    if seconds < _HOUR:
        return f"about {round(seconds / _MINUTE)} min"
    return f"about {seconds / _HOUR:.1f} h"


def moment(time: float) -> str:
    """Format a time for people, in UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%d %b %Y, %H:%M UTC")


def day(time: float) -> str:
    """Format a date for people, in UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%d %b %Y")


def ago(time: float, now: float) -> str:
    """Format the age of an event; of one that is older than a week, its date."""
    age = max(0.0, now - time)
    if age < _MINUTE:
        return "just now"
    if age < _HOUR:
        return f"{age // _MINUTE:.0f} min ago"
    if age < _DAY:
        return f"{age // _HOUR:.0f} h ago"
    days = int(age // _DAY)
    if days <= _WEEK:
        return "1 day ago" if days == 1 else f"{days} days ago"
    return day(time)


def short(revision: str) -> str:
    """Shorten a commit or a digest to twelve characters."""
    return revision[:12] if _HASH.fullmatch(revision) else revision


def derivation(file: str) -> str:
    """Return the name in ``<hash>-<name>.drv``."""
    return _STORE_HASH.sub("", file).removesuffix(".drv")


def unhashed(message: str) -> str:
    """Leave out the hashes of store paths in a message."""
    return _STORE_PATH.sub("", message)


def breakable(name: str) -> Markup:
    """Allow line breaks between the packages of an image name."""
    return Markup("/<wbr>").join(name.split("/"))


def grouped(number: int) -> str:
    """Format a number with commas between thousands."""
    return f"{number:,}"


def iso(time: float) -> str:
    """Format a time for programs."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
