"""Package sets in the Nix store, where nobody changes them.

Trees of package sets in the Nix store, by the commit that they are of.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from nixery.caching import LRUCache
from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.error_message import collected_path, explanation, is_about_something_gone, without_paths
from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots
from nixery.nix.processes import ProcessContext, run_command

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
        self._surroundings = ProcessContext(environment)
        self._roots = roots
        self._collector = collector

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Have the garbage collector wait, where that is possible, from adding a path until it is kept."""
        return self._collector.held()

    async def add(self, tree: Path) -> Path:
        """Copy a directory; return its store path, which is named by the content.

        Raises:
            NixUnusable: Nix cannot do that.
        """
        completed, stderr = await run_command(
            _COPY, "nix-store", "--add", str(tree), context=self._surroundings
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
                    context=self._surroundings,
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


# Bytes for the places of trees; another commit is in the store, perhaps, but it is not known where.
_CAPACITY = 1024 * 1024

# How often a tree is made again that was collected before it could be protected. The time in between is that of starting a process.
_ATTEMPTS = 3

Make = Callable[[], Awaitable[Path]]


class TreeCache:
    """Makes each tree once, and again when Nix's garbage collector has taken it.

    Args:
        store: where they are.
    """

    def __init__(self, store: NixStore) -> None:
        self._store = store
        self._trees: LRUCache[str, Path] = LRUCache(_CAPACITY)
        # One for each commit: a tree that is there does not wait for another one, which may be fetched for minutes.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, commit: str, make: Make) -> Path:
        """Return where a tree is. Until it is kept, it may go at any time.

        Args:
            commit: names it.
            make: puts it into the store.
        """
        async with self._locks.setdefault(commit, asyncio.Lock()):
            tree = self._trees.get(commit)
            if tree is None or not await asyncio.to_thread(tree.exists):
                tree = await make()
                self._trees.put(commit, tree, len(str(tree)))
            return tree

    @asynccontextmanager
    async def keeping(self, commit: str, make: Make) -> AsyncIterator[Path]:
        """Have a tree that is protected while the context lasts.

        Raises:
            PathsCollected: it was collected each time, before it was protected.
            NixUnusable: Nix cannot be run.
        """
        async with AsyncExitStack() as stack:
            yield await self._keep(stack, commit, make)

    async def _keep(self, stack: AsyncExitStack, commit: str, make: Make) -> Path:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._attempt(stack, commit, make)
            except PathsCollected:
                self._trees.discard(commit)
        # Fetching may take minutes, for which nobody's collector is to wait unless there is no other way.
        async with self._store.collector_paused():
            return await self._attempt(stack, commit, make)

    async def _attempt(self, stack: AsyncExitStack, commit: str, make: Make) -> Path:
        tree = await self.get(commit, make)
        await stack.enter_async_context(self._store.keeping(tree))
        return tree
