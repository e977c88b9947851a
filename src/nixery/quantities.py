"""Sizes, durations and watermarks as people write them: ``50GiB``, ``30d``, ``90%``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9})\s*([smhdw]?)", re.ASCII)

_POWERS = "kmgtp"
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgtp])(i?))?b?", re.ASCII | re.IGNORECASE)

_PERCENT = re.compile(r"(\d{1,2}(?:\.\d{1,3})?)\s*%", re.ASCII)


def seconds(text: str) -> int:
    """Parse a duration: a number and ``s``, ``m``, ``h``, ``d`` or ``w``; without a unit, seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 2h or 30d")
    return int(match[1]) * _SECONDS[match[2] or "s"]


def size(text: str) -> int:
    """Parse a size in bytes: ``GB`` is a power of 1000, ``GiB`` and ``G`` are powers of 1024.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 500MB or 50GiB")
    number, prefix, binary = match.groups()
    if not prefix:
        return int(float(number))
    decimal = text.strip().lower().endswith("b") and not binary
    return int(float(number) * (1000 if decimal else 1024) ** (_POWERS.index(prefix.lower()) + 1))


@dataclass(frozen=True, slots=True)
class DiskMark:
    """A watermark of disk usage: a share of a file system, or a size of all blobs.

    Attributes:
        percent: of the file system that holds the storage, used by any program; ``None`` for a mark in bytes.
        size: of all blobs, in bytes; ``None`` for a mark in percent.
    """

    percent: float | None
    size: int | None

    @classmethod
    def parse(cls, text: str) -> DiskMark:
        """Parse a percentage or a size.

        Raises:
            ValueError: the text is neither.
        """
        match = _PERCENT.fullmatch(text.strip())
        if match is not None:
            return cls(float(match[1]), None)
        try:
            return cls(None, size(text))
        except ValueError:
            raise ValueError(
                f"{text!r} is neither a percentage nor a size; write for example 90% or 50GiB"
            ) from None

    @property
    def value(self) -> float:
        """Percent, or bytes."""
        return self.percent if self.percent is not None else float(self.size or 0)

    def is_below(self, other: DiskMark) -> bool:
        """Whether this mark is lower than another one of the same unit; ``False`` if their units differ."""
        same_unit = (self.percent is None) == (other.percent is None)
        return same_unit and self.value < other.value

    def times(self, factor: float) -> DiskMark:
        """Return a fraction or a multiple of this mark."""
        if self.percent is not None:
            return DiskMark(self.percent * factor, None)
        return DiskMark(None, int((self.size or 0) * factor))
