"""The packed data: closures of real packages, in the layers that an image of them would have."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nixery.closure import StorePath
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.options import NixOptions
from nixery.nix.realisation import Nix, TimeLimits

_PACKAGE_SET = "packagesets/debian"

# The default of NIXERY_LAYER_BUDGET, without the layer of the root file system.
_STORE_LAYERS = 93

# Seconds to fetch the packages, which is not measured.
_REALISATION = 900.0
_QUERY = 60.0


class BenchError(Exception):
    """Something cannot be measured."""


@dataclass(frozen=True)
class Subject:
    """A closure.

    Attributes:
        name: of the package.
        layers: base names of the store paths in each.
        files: how many there are, symlinks and directories among them.
    """

    name: str
    layers: list[list[str]]
    files: int

    @property
    def paths(self) -> list[str]:
        """All store paths, in the form of tar's input."""
        return [f"nix/store/{path}" for layer in self.layers for path in layer]


def _is_in_the_set(name: str) -> bool:
    evaluation = ("nix-instantiate", "--eval", _PACKAGE_SET, "-A", f"{name}.name")
    return subprocess.run(evaluation, capture_output=True, timeout=_QUERY, check=False).returncode == 0


def realise(*names: str) -> Subject:
    """Realise a package of the Debian set and group its closure.

    Args:
        names: the first one that the set has is used.

    Raises:
        BenchError: Nix cannot.
    """
    name = next(filter(_is_in_the_set, names), names[0])
    try:
        built = subprocess.run(
            ("nix-build", _PACKAGE_SET, "-A", name, "--no-out-link"),
            capture_output=True,
            text=True,
            timeout=_REALISATION,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        # The reason is at the end, after the output of downloads and builders.
        first = next((number for number, line in enumerate(said) if line.startswith("error:")), -10)
        raise BenchError(f"cannot build {name}: " + "\n".join(said[first:])) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"cannot build {name}: {error}") from error
    requested = [StorePath.parse(line) for line in built.stdout.split()]
    with tempfile.TemporaryDirectory(prefix="roots-", dir="var") as directory:
        collector = NixGarbageCollector(Path("/nix/var/nix"), Path(directory).resolve())
        options = NixOptions(building=os.environ)
        nix = Nix(TimeLimits(_QUERY, _QUERY), collector, options)
        closure = asyncio.run(nix.closure(requested))
    groups = group_into_layers(closure, Popularity(), _STORE_LAYERS)
    layers = [[path.base_name for path in group.paths] for group in groups]
    return Subject(
        name,
        layers,
        sum(1 for info in closure for _ in (Path(str(info.path)), *Path(str(info.path)).rglob("*"))),
    )
