"""Byte ranges (RFC 9110, section 14): what clients use to go on with a blob that broke off."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
