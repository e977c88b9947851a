"""Package sets in the Nix store, where nobody changes them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.collector_lock import CollectorLock
from nixery.nix.command import run_command
from nixery.nix.error_message import collected_path, explanation, is_about_something_gone, without_paths
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.process import Surroundings

# Seconds to copy a package set; nixpkgs has 40,000 files.
_COPY = 300


class NixStore:
    """Copies trees into the Nix store, and keeps them there while they are in use.

    Args:
        roots: protect them from Nix's garbage collector.
        collector: the lock of that collector.
        environment: of Nix's commands.
    """

    def __init__(
        self, roots: GarbageCollectorRoots, collector: CollectorLock, environment: Mapping[str, str]
    ) -> None:
        self._surroundings = Surroundings(environment)
        self._roots = roots
        self._collector = collector

    def undisturbed(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Have the garbage collector wait, where that is possible, from adding a path until it is kept."""
        return self._collector.held()

    async def add(self, tree: Path) -> Path:
        """Copy a directory; return its store path, which is named by the content.

        Raises:
            NixUnusable: Nix cannot do that.
        """
        completed, stderr = await run_command(
            _COPY, "nix-store", "--add", str(tree), surroundings=self._surroundings
        )
        if completed.exit_code != 0:
            gone = collected_path(stderr)
            raise PathsCollected(gone) if gone is not None else _unusable("nix-store --add", stderr)
        return Path(completed.stdout.decode().strip())

    @asynccontextmanager
    async def keeping(self, path: Path) -> AsyncIterator[None]:
        """Protect a store path while the context lasts.

        Raises:
            PathsCollected: it is not there any more.
            NixUnusable: Nix cannot be run.
        """
        with self._roots.hold() as root:
            # A collector that is looking for roots may have passed the place of ours, and look at those of running processes when this
            # one, which does next to nothing, has ended. So it is not to be at work.
            async with self._collector.held():
                completed, stderr = await run_command(
                    _COPY,
                    *("nix-store", "--realise", str(path), "--add-root", str(root), "--indirect"),
                    surroundings=self._surroundings,
                )
            if completed.exit_code != 0:
                # Whether its files are there says nothing: the collector takes a path out of the database before it deletes them. And a
                # tree cannot be built: that its build failed is all that Nix says if it went in the middle of the command.
                if is_about_something_gone(stderr) or f"build of '{path}' failed" in explanation(stderr):
                    raise PathsCollected(str(path))
                raise _unusable("nix-store --realise", stderr)
            # Nix looks for the path first and registers the root then, with whichever collector is at work. From here on nothing takes it.
            if not await asyncio.to_thread(os.path.lexists, path):
                raise PathsCollected(str(path))
            yield


def _unusable(command: str, stderr: Sequence[str]) -> NixUnusable:
    return NixUnusable(f"{command} failed: {without_paths(explanation(stderr))}")
