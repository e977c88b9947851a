"""What references are counted in."""

from __future__ import annotations

from enum import StrEnum


class Basis(StrEnum):
    """What references are counted of."""

    AUTO = "auto"
    CLOSURES = "closures"
    DERIVATIONS = "derivations"
