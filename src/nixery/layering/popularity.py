"""Popularity: how many packages of a whole package set refer to each package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from nixery.closure import StorePath, without_version
from nixery.oci.documents import canonical_json

# A package that at least this many others refer to is popular.
THRESHOLD = 100

# In every image, hence popular regardless of the data. nixpkgs calls its cacert nss-cacert.
_ALWAYS_POPULAR = frozenset({"cacert", "nss-cacert", "iana-etc"})


@dataclass(frozen=True, slots=True)
class Popularity:
    """Reference counts by package name.

    Attributes:
        counts: number of packages that refer to a package. A key is a name with its version (``glibc-2.36``)
            or without (``glibc``).
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    _by_package_name: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, int] = {}
        for key, count in self.counts.items():
            name = without_version(key)
            # The largest, not the sum: a set with three versions of a library would make the next version
            # three times as popular as any of them.
            found[name] = max(count, found.get(name, 0))
        # A key without a version is meant for all versions.
        found.update((key, count) for key, count in self.counts.items() if key in found)
        object.__setattr__(self, "_by_package_name", found)

    @property
    def identity(self) -> str:
        """SHA-256 of the counts in hexadecimal digits, independent of how the data is formatted."""
        return hashlib.sha256(canonical_json(dict(self.counts))).hexdigest()

    def count(self, path: StorePath) -> int:
        """Return the reference count: of the name with its version, else of the name without, else the largest of other versions.

        So data stays useful when versions change. An unknown path has 1, and is rated by size alone.
        """
        exact = self.counts.get(path.name)
        return max(1, self._by_package_name.get(path.package_name, 1) if exact is None else exact)

    def is_popular(self, path: StorePath) -> bool:
        """Whether images with little else in common contain the path."""
        return path.package_name in _ALWAYS_POPULAR or self.count(path) >= THRESHOLD
