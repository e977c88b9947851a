"""What counting references asks, and whom it tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from enum import StrEnum
from typing import Protocol

from nixery.image.platform import Platform
from nixery.nix.builder import NixBuilder
from nixery.sources.source import PackageSet


class Basis(StrEnum):
    """What references are counted of."""

    AUTO = "auto"
    CLOSURES = "closures"
    DERIVATIONS = "derivations"


class PackageGraph(NixBuilder, Protocol):
    """What is asked about a whole set."""

    async def names(self, platform: Platform, package_set: PackageSet) -> list[str]:
        """Return all names of a set, packages or not."""
        ...

    async def to_build(self, installables: Sequence[str]) -> list[str]:
        """Return the derivations that would have to be built for some outputs, absolute and sorted."""
        ...

    def inputs(self, derivations: Iterable[str]) -> AsyncIterator[tuple[str, list[str]]]:
        """Yield each derivation that some derivations need, as ``<hash>-<name>``, and the names of its inputs.

        What only fetches something, and sources, are left out.
        """
        ...


class Watcher(Protocol):
    """Is told how it goes."""

    def begin(self, what: str, total: int) -> None:
        """Something begins that has so many packages."""

    def advance(self, count: int) -> None:
        """So many more of them are done."""

    def note(self, line: str) -> None:
        """Something is worth knowing."""
