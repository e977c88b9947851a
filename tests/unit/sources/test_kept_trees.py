import asyncio
import os
from pathlib import Path

import pytest

from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots
from nixery.sources.trees import NixStore, TreeCache

# Seconds. Nothing here waits for anything.
_PATIENCE = 20


@pytest.fixture
def trees(tmp_path: Path) -> TreeCache:
    roots, collector = GarbageCollectorRoots(tmp_path / "roots"), CollectorLock(tmp_path / "state")
    return TreeCache(NixStore(roots, collector, os.environ))


class Making:
    """Makes a tree when the test says so."""

    def __init__(self, tree: Path) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.times = 0
        self._tree = tree

    async def __call__(self) -> Path:
        self.times += 1
        self.begun.set()
        await self.may_end.wait()
        return self._tree


async def test_trees_do_not_wait_for_another_one(trees: TreeCache, tmp_path: Path) -> None:
    known, slow, other = Making(tmp_path), Making(tmp_path), Making(tmp_path)
    known.may_end.set()
    other.may_end.set()
    await trees.get("known", known)
    fetching = asyncio.ensure_future(trees.get("slow", slow))
    await slow.begun.wait()
    async with asyncio.timeout(_PATIENCE):
        await trees.get("known", known)
        await trees.get("other", other)
    assert known.times == 1
    slow.may_end.set()
    assert await fetching == tmp_path


async def test_a_tree_is_made_once_for_all_who_want_it(trees: TreeCache, tmp_path: Path) -> None:
    making = Making(tmp_path)
    wanted = [asyncio.ensure_future(trees.get("one", making)) for _ in range(3)]
    await making.begun.wait()
    making.may_end.set()
    assert await asyncio.gather(*wanted) == [tmp_path] * 3
    assert making.times == 1
