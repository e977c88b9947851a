"""The ``created`` of images, by which registries and engines decide what is old."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from nixery.sources.source import LATEST, Pin

# Values of NIXERY_CREATED besides a date.
SOURCE, BUILD = "source", "build"

# RFC 3339, 5.6; its "T" and "Z" may be lower case, or a space.
_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class CreationDate:
    """The rule for the date of images.

    Attributes:
        rule: ``source``: that of the package source, which every server gives alike; ``build``: the time of the
            build, which differs between builds, and so does the digest; or the seconds of ``fixed``.
        fixed: seconds since the epoch; ``None`` without a fixed date.
    """

    rule: str = SOURCE
    fixed: int | None = None

    @classmethod
    def parse(cls, text: str) -> CreationDate:
        """Parse ``source``, ``build``, a date of RFC 3339, or seconds since the epoch.

        Raises:
            ValueError: it is neither, or no date after the epoch.
        """
        text = text.strip()
        if text in {SOURCE, BUILD}:
            return cls(text)
        try:
            seconds = int(_as_datetime(text).timestamp()) if _DATE.fullmatch(text) else _as_seconds(text)
        except (ValueError, OverflowError):
            seconds = 0
        if not 0 < seconds <= LATEST:
            raise ValueError(
                f"{text!r} is not source, build, a date such as 2026-01-31T12:00:00Z, or seconds since the epoch from 1 to "
                f"{LATEST}"
            )
        return cls(str(seconds), seconds)

    @property
    def is_reproducible(self) -> bool:
        """Whether two builds have the same date."""
        return self.rule != BUILD

    def of(self, pin: Pin, now: float) -> int | None:
        """Return the date of an image in seconds since the epoch; ``None`` if its source has none.

        Args:
            pin: the state of the source.
            now: seconds since the epoch.
        """
        if self.rule == BUILD:
            return int(now)
        return pin.created if self.rule == SOURCE else self.fixed


def _as_datetime(text: str) -> datetime:
    # Python before 3.12 takes no lower-case "z" here, and no more than six digits of a second.
    whole = re.sub(r"\.\d+", "", text).upper().replace("Z", "+00:00")
    return datetime.fromisoformat(whole).astimezone(UTC)


def _as_seconds(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise ValueError(text)
    return int(text)
