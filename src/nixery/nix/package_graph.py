"""Who refers to whom in a package set, by Nix as a subprocess."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence

from nixery.beneath import read_beginning
from nixery.closure.store_path import STORE_DIRECTORY, StorePath
from nixery.errors import BuildTimedOut, NixUnusable
from nixery.image.platform import Platform
from nixery.nix.command import in_batches
from nixery.nix.error_message import without_paths
from nixery.nix.process import Deadline, run
from nixery.nix.registration import parse_registrations
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.nix.subprocess_evaluation import Evaluation
from nixery.sources.source import PackageSet

_DERIVATION = ".drv"

# A derivation begins with its outputs: name, path, and, where the content is known beforehand, its hash.
_FIXED_OUTPUT = re.compile(rb'Derive\(\[\("out","[^"]*","[^"]+"')
_HEAD = 1024


class SubprocessPackageGraph(SubprocessNixBuilder):
    """The ``PackageGraph``: what building takes, and what is asked about a whole set beyond it."""

    # Queries thousands of names at once, many of which may not evaluate; only the operator starts it.
    _processes = 100_000

    async def names(self, platform: Platform, package_set: PackageSet) -> list[str]:
        """See ``PackageGraph.names``."""
        return await Evaluation(platform, package_set, self._timeout, self._options).names()

    async def to_build(self, installables: Sequence[str]) -> list[str]:
        """See ``PackageGraph.to_build``."""
        found: list[str] = []
        last: list[str] = []

        def read_line(line: bytes) -> None:
            # Below "these 2 derivations will be built:"; what can be fetched are paths of outputs.
            text = line.decode(errors="replace")
            last[:] = [text]
            if text.startswith(f"  {STORE_DIRECTORY}/") and text.endswith(_DERIVATION):
                found.append(text.strip())

        arguments = ("nix-store", "--realise", "--dry-run", *installables, *self._options.for_building)
        try:
            completed = await run(arguments, read_line, Deadline(self._timeout), self._options.store())
        except TimeoutError:
            raise BuildTimedOut(None, self._timeout) from None
        if completed.exit_code != 0:
            raise NixUnusable(f"nix-store --realise --dry-run failed: {without_paths(''.join(last))}")
        return sorted(found)

    async def inputs(self, derivations: Iterable[str]) -> AsyncIterator[tuple[str, list[str]]]:
        """See ``PackageGraph.inputs``."""
        requisites: set[str] = set()
        for batch in in_batches(sorted(derivations)):
            requisites.update((await self._query("--query", "--requisites", *batch)).split())
        fixed: dict[str, bool] = {}
        for batch in in_batches(sorted(path for path in requisites if path.endswith(_DERIVATION))):
            text = await self._query("--dump-db", *batch)
            for found in await asyncio.to_thread(_inputs, text, fixed):
                yield found


def _inputs(text: str, fixed: dict[str, bool]) -> list[tuple[str, list[str]]]:
    def is_package(path: StorePath) -> bool:
        if not path.base_name.endswith(_DERIVATION):
            return False  # a source, or a builder's script
        if path.base_name not in fixed:
            fixed[path.base_name] = _is_fixed_output(str(path))
        return not fixed[path.base_name]

    return [
        (
            info.path.base_name.removesuffix(_DERIVATION),
            [path.name.removesuffix(_DERIVATION) for path in info.references if is_package(path)],
        )
        for info in parse_registrations(text)
        if is_package(info.path)
    ]


def _is_fixed_output(derivation: str) -> bool:
    """Whether it fetches something: archives of sources are in hardly any closure."""
    # A source can have a derivation's name, and be a symlink to any file.
    try:
        return _FIXED_OUTPUT.match(read_beginning(derivation, _HEAD)) is not None
    except OSError:
        return False
