"""Trees of package sets in the Nix store, by the commit that they are of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from nixery.errors import PathsCollected
from nixery.fetching.nix_store import NixStore
from nixery.least_recently_used import LeastRecentlyUsed

# Bytes for the places of trees; another commit is in the store, perhaps, but it is not known where.
_CAPACITY = 1024 * 1024

# How often a tree is made again that was collected before it could be protected. The time in between is that of starting a process.
_ATTEMPTS = 3

Make = Callable[[], Awaitable[Path]]


class KeptTrees:
    """Makes each tree once, and again when Nix's garbage collector has taken it.

    Args:
        store: where they are.
    """

    def __init__(self, store: NixStore) -> None:
        self._store = store
        self._trees: LeastRecentlyUsed[str, Path] = LeastRecentlyUsed(_CAPACITY)
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
        async with self._store.undisturbed():
            return await self._attempt(stack, commit, make)

    async def _attempt(self, stack: AsyncExitStack, commit: str, make: Make) -> Path:
        tree = await self.get(commit, make)
        await stack.enter_async_context(self._store.keeping(tree))
        return tree
