"""Trees of package sets in the Nix store, where they cannot change: added, protected while in use, and cached."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from nixery.caching import LRUCache
from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.error_message import collected_path, explanation, reports_missing_path, without_paths
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.processes import ProcessContext, run_command

# Seconds to copy a package set; nixpkgs has 40,000 files.
_COPY_TIMEOUT = 300

# Bytes of cached tree locations.
_CAPACITY = 1024 * 1024

# How often a tree is made again that was collected before it was protected.
_ATTEMPTS = 3

Make = Callable[[], Awaitable[Path]]


class NixStore:
    """Copies trees into the Nix store, and protects them while they are in use.

    Args:
        collector: of the Nix store.
        environment: of Nix's commands.
    """

    def __init__(self, collector: NixGarbageCollector, environment: Mapping[str, str]) -> None:
        self._context = ProcessContext(environment)
        self._collector = collector

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Keep the garbage collector waiting, if possible, from adding a path until it is protected."""
        return self._collector.paused()

    async def add(self, tree: Path) -> Path:
        """Copy a directory; return its store path, which depends on the content alone.

        Raises:
            PathsCollected: a path that it needs was collected meanwhile.
            NixTimedOut: it timed out.
            NixUnusable: Nix failed.
        """
        completed, stderr = await run_command(
            _COPY_TIMEOUT, "nix-store", "--add", str(tree), context=self._context
        )
        if completed.exit_code != 0:
            gone = collected_path(stderr)
            raise PathsCollected(gone) if gone is not None else _unusable("nix-store --add", stderr)
        return Path(completed.stdout.decode().strip())

    @asynccontextmanager
    async def keeping(self, path: Path) -> AsyncIterator[None]:
        """Protect a store path while the context lasts.

        Raises:
            PathsCollected: it no longer exists.
            NixUnusable: Nix cannot be run.
        """
        with self._collector.root() as root:
            # Otherwise a collector that is searching for roots may already have passed the place of this
            # root, and scan the processes only after this short one has ended.
            async with self._collector.paused():
                completed, stderr = await run_command(
                    _COPY_TIMEOUT,
                    *("nix-store", "--realise", str(path), "--add-root", str(root), "--indirect"),
                    context=self._context,
                )
            if completed.exit_code != 0:
                # Whether its files exist proves nothing: the collector takes a path out of the database
                # before it deletes them. If that happens during the command, Nix reports a failed build of
                # the tree.
                if reports_missing_path(stderr) or f"build of '{path}' failed" in explanation(stderr):
                    raise PathsCollected(str(path))
                raise _unusable("nix-store --realise", stderr)
            # Nix looks for the path first and registers the root afterwards; a collector may run in between.
            if not await asyncio.to_thread(os.path.lexists, path):
                raise PathsCollected(str(path))
            yield


class TreeCache:
    """Makes each tree once, and again after Nix's garbage collector has taken it.

    Args:
        store: where the trees are.
    """

    def __init__(self, store: NixStore) -> None:
        self._store = store
        self._trees: LRUCache[str, Path] = LRUCache(_CAPACITY)
        # One lock for each commit: an existing tree does not wait for another one that takes minutes to
        # fetch.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, commit: str, make: Make) -> Path:
        """Return the location of a tree, which may be collected at any time until it is protected.

        Args:
            commit: identifies it.
            make: adds it to the store.
        """
        async with self._locks.setdefault(commit, asyncio.Lock()):
            tree = self._trees.get(commit)
            if tree is None or not await asyncio.to_thread(tree.exists):
                tree = await make()
                self._trees.put(commit, tree, len(str(tree)))
            return tree

    @asynccontextmanager
    async def keeping(self, commit: str, make: Make) -> AsyncIterator[Path]:
        """Return a tree that is protected while the context lasts.

        Raises:
            PathsCollected: it was collected at every attempt, before it was protected.
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
        # A fetch may take minutes; the collector waits for it only at the last attempt.
        async with self._store.collector_paused():
            return await self._attempt(stack, commit, make)

    async def _attempt(self, stack: AsyncExitStack, commit: str, make: Make) -> Path:
        tree = await self.get(commit, make)
        await stack.enter_async_context(self._store.keeping(tree))
        return tree


def _unusable(command: str, stderr: Sequence[str]) -> NixUnusable:
    return NixUnusable(f"{command} failed: {without_paths(explanation(stderr))}")
