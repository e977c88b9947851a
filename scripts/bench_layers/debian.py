"""The dependency graph of all of Debian, with sizes: the packages of the simulated images."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from nixery.closure import PathInfo, StorePath

# Seconds for apt to print its index.
_TIMEOUT = 120
_KIBIBYTE = 1024


@dataclass(frozen=True, slots=True)
class Derivation:
    """A derivation of one store path.

    Attributes:
        name: with the version, as in the store path.
        size: the installed size of its packages in bytes, by apt.
        dependencies: indexes of derivations, all smaller than its own.
    """

    name: str
    size: int
    dependencies: tuple[int, ...]


class _Group(TypedDict):
    """The fields of a derivation in the lock that the simulation needs."""

    name: str
    members: list[dict[str, str]]
    dependencies: list[str]


def load(package_set: Path, system: str) -> list[Derivation]:
    """Read the lock of Debian's package set; dependencies come before their dependents.

    Raises:
        OSError: there is no lock, or no apt.
        subprocess.SubprocessError: apt failed.
    """
    groups = dict(_groups(package_set / "lock", system))
    sizes = _installed_sizes()
    order = _dependencies_first({name: group["dependencies"] for name, group in groups.items()})
    index = {name: number for number, name in enumerate(order)}
    return [
        Derivation(
            groups[name]["name"],
            # No archive is completely empty.
            max(_KIBIBYTE, sum(sizes.get(member["file"], 0) for member in groups[name]["members"])),
            tuple(sorted(index[dependency] for dependency in groups[name]["dependencies"])),
        )
        for name in order
    ]


def _groups(lock: Path, system: str) -> Iterator[tuple[str, _Group]]:
    generation = json.loads((lock / f"{system}.json").read_text())["generation"]
    for shard in sorted((lock / generation).glob("*.json")):
        yield from json.loads(shard.read_text())["groups"].items()


def _installed_sizes() -> dict[str, int]:
    listing = subprocess.run(
        ["apt-cache", "dumpavail"], capture_output=True, text=True, check=True, timeout=_TIMEOUT
    ).stdout
    sizes: dict[str, int] = {}
    for stanza in listing.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in stanza.split("\n"))
        if "Filename" in fields:
            sizes[fields["Filename"]] = int(fields.get("Installed-Size", "0")) * _KIBIBYTE
    return sizes


def _dependencies_first(graph: Mapping[str, Sequence[str]]) -> list[str]:
    order: dict[str, None] = {}
    for start in sorted(graph):
        stack = [start]
        while stack:
            missing = [name for name in graph[stack[-1]] if name not in order]
            if missing:
                stack += missing
            else:
                order.setdefault(stack.pop())
    return list(order)


def reference_counts(derivations: Sequence[Derivation]) -> list[int]:
    """Count the direct dependents of each derivation: the popularity data of the set."""
    counts = [0] * len(derivations)
    for derivation in derivations:
        for dependency in derivation.dependencies:
            counts[dependency] += 1
    return counts


def realise(derivations: Sequence[Derivation], versions: Sequence[int]) -> list[PathInfo]:
    """Make store paths as Nix does: the hash covers the derivation and all of its dependencies."""
    infos: list[PathInfo] = []
    for derivation, version in zip(derivations, versions, strict=True):
        references = tuple(sorted(infos[dependency].path for dependency in derivation.dependencies))
        inputs = [derivation.name, str(version), *(path.base_name for path in references)]
        identity = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
        path = StorePath(f"{identity[:32]}-{derivation.name}")
        infos.append(PathInfo(path, identity, derivation.size, references))
    return infos
