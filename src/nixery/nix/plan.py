"""What Nix would do to provide some outputs: the answer of ``nix-store --realise --dry-run``, which is meant for people."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nixery import quantities
from nixery.closure import StorePath

# Headings of lists of store paths, in Nix 2.8 and in current versions (``printMissing`` in Nix's ``shared.cc``):
#   this derivation will be built:
#   these 2 derivations will be built:
#   this path will be fetched (0.05 MiB download, 0.22 MiB unpacked):
#   these 3 paths will be fetched (48.1 KiB download, 1.2 GiB unpacked):
#   don't know how to build these paths:
#   don't know how to build these paths (may be caused by read-only store access):
_BUILT = re.compile(r"th(?:is|ese \d+) derivations? will be built:")
_SIZE = r"(\d{1,15}(?:\.\d{1,6})? [KMGTP]?i?B)"
_FETCHED = re.compile(
    rf"th(?:is|ese \d+) paths? will be fetched(?: \({_SIZE} download, {_SIZE} unpacked\))?:"
)
_UNKNOWN = re.compile(r"don't know how to build (?:this|these) paths?\b.*:")

_INDENTED = "  /"


@dataclass(frozen=True, slots=True)
class Plan:
    """What Nix would do to provide some outputs; all empty if they are in the Nix store.

    Attributes:
        builds: derivations that Nix would build, sorted.
        sources: those of them that only fetch something, sorted.
        downloads: store paths that binary caches have, sorted.
        unknown: store paths that Nix can neither build nor download, sorted.
        download_size: bytes to receive from binary caches; ``None`` if Nix does not say.
        unpacked_size: bytes of these paths in the Nix store (NAR size); likewise.
    """

    builds: tuple[StorePath, ...] = ()
    sources: tuple[StorePath, ...] = ()
    downloads: tuple[StorePath, ...] = ()
    unknown: tuple[StorePath, ...] = ()
    download_size: int | None = 0
    unpacked_size: int | None = 0

    @property
    def is_empty(self) -> bool:
        """Whether Nix has nothing to do."""
        return not (self.builds or self.downloads or self.unknown)


class PlanReader:
    """Reads a plan line by line."""

    def __init__(self) -> None:
        self._builds: list[StorePath] = []
        self._downloads: list[StorePath] = []
        self._unknown: list[StorePath] = []
        self._sizes: tuple[int | None, int | None] = 0, 0
        self._list: list[StorePath] | None = None

    def read_line(self, line: str) -> None:
        """Read a line without its line break; ignore those that belong to no plan, such as warnings."""
        if line.startswith(_INDENTED):
            if self._list is not None:
                try:
                    self._list.append(StorePath.parse(line.strip()))
                except ValueError:
                    self._list = None
            return
        self._list = None
        if _BUILT.fullmatch(line):
            self._list = self._builds
        elif (fetched := _FETCHED.fullmatch(line)) is not None:
            self._list = self._downloads
            self._sizes = _size(fetched[1]), _size(fetched[2])
        elif _UNKNOWN.fullmatch(line):
            self._list = self._unknown

    @property
    def plan(self) -> Plan:
        """The plan, without sources: Nix does not tell them from other derivations."""
        builds, downloads, unknown = (
            tuple(sorted(set(paths))) for paths in (self._builds, self._downloads, self._unknown)
        )
        download_size, unpacked_size = self._sizes
        return Plan(builds, (), downloads, unknown, download_size, unpacked_size)


def _size(text: str | None) -> int | None:
    return None if text is None else quantities.size(text)
