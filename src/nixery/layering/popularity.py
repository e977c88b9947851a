"""How often packages are referred to across a whole package set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nixery.closure.store_path import StorePath

# A package that at least this many others refer to is popular.
THRESHOLD = 100

# Part of every image, hence popular whatever the data says. nixpkgs calls its cacert nss-cacert.
_ALWAYS_POPULAR = frozenset({"cacert", "nss-cacert", "iana-etc"})


@dataclass(frozen=True, slots=True)
class Popularity:
    """Reference counts by package name.

    Attributes:
        counts: number of packages that refer to a package. A key is a name with its version (``glibc-2.36``)
            or without (``glibc``), so that data stays useful when versions move; the former wins.
    """

    counts: Mapping[str, int] = field(default_factory=dict)

    def count(self, path: StorePath) -> int:
        """Return the reference count; 1 where nothing is known, so that unknown paths are rated by size alone."""
        exact = self.counts.get(path.name)
        return max(1, self.counts.get(path.package_name, 1) if exact is None else exact)

    def is_popular(self, path: StorePath) -> bool:
        """Whether the path gets a layer of its own."""
        return path.package_name in _ALWAYS_POPULAR or self.count(path) >= THRESHOLD
