"""Package sets in the Nix store, where nobody changes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.collector_lock import CollectorLock
from nixery.nix.command import run_command
from nixery.nix.error_message import collected_path, explanation, without_paths
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots

# Seconds to copy a package set; nixpkgs has 40,000 files.
_COPY = 300


class NixStore:
    """Copies trees into the Nix store, and keeps them there while they are used.

    Args:
        roots: what protects them from Nix's garbage collector.
        collector: that one's lock.
    """

    def __init__(self, roots: GarbageCollectorRoots, collector: CollectorLock) -> None:
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
        return Path((await self._run("nix-store", "--add", str(tree))).strip())

    @asynccontextmanager
    async def keeping(self, path: Path) -> AsyncIterator[None]:
        """Protect a store path while the context lasts.

        Raises:
            PathsCollected: it is not there any more.
            NixUnusable: Nix cannot be run.
        """
        with self._roots.hold() as root:
            await self._run("nix-store", "--realise", str(path), "--add-root", str(root), "--indirect")
            yield

    async def _run(self, *arguments: str) -> str:
        completed, stderr = await run_command(_COPY, *arguments)
        gone = collected_path(stderr) if completed.exit_code != 0 else None
        if gone is not None:
            raise PathsCollected(gone)
        if completed.exit_code != 0:
            raise NixUnusable(f"{arguments[0]} {arguments[1]} failed: {without_paths(explanation(stderr))}")
        return completed.stdout.decode()
