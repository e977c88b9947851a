"""Packages whose main program is known not to start, and why."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

REASONS = Path(__file__).with_name("reasons.toml")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a program does not start.

    Attributes:
        users: those it does not start for: ``root``, ``plain``.
        text: Markdown, for the table of the documentation.
    """

    users: frozenset[str]
    text: str


def read_reasons() -> dict[str, Reason]:
    """Read the reasons by package."""
    return {
        package: Reason(frozenset(line["users"]), line["reason"])
        for package, line in tomllib.loads(REASONS.read_text()).items()
    }
