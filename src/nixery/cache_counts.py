"""How often a cache had what was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheCounts:
    """Counted where it happens, as plain numbers, since a cached answer takes little longer than a counter with a lock.

    Attributes:
        hits: it was there.
        misses: it had to be made, or fetched from somewhere slower.
    """

    hits: int = 0
    misses: int = 0
