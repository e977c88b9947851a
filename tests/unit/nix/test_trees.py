import asyncio
import os
from pathlib import Path

import pytest

from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.trees import NixStore, TreeCache


@pytest.fixture
def store(tmp_path: Path) -> NixStore:
    # Tests change the environment before a command runs.
    return NixStore(NixGarbageCollector(tmp_path / "state", tmp_path / "roots"), os.environ)


def fake_nix_store(monkeypatch: pytest.MonkeyPatch, directory: Path, said: str, status: int = 1) -> None:
    """Stand in for Nix in a state that is hard to reproduce, with the messages of Nix 2.8."""
    program = directory / "bin" / "nix-store"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.fixture
def tree() -> Path:
    """A store path whose files exist."""
    return next(entry for entry in Path("/nix/store").iterdir() if "-" in entry.name)


@pytest.mark.parametrize(
    "said",
    [
        "don't know how to build these paths:\n  {tree}\nerror: build of '{tree}' failed",
        "error: build of '{tree}' failed",
    ],
    ids=["before the command", "in the middle of it"],
)
async def test_a_tree_that_is_being_deleted_counts_as_collected(
    store: NixStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    # The database no longer has the path.
    fake_nix_store(monkeypatch, tmp_path, said.format(tree=tree))
    with pytest.raises(PathsCollected):
        async with store.keeping(tree):
            pass


async def test_a_tree_deleted_before_its_root_was_registered_counts_as_collected(
    store: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nix_store(monkeypatch, tmp_path, "", status=0)
    with pytest.raises(PathsCollected):
        async with store.keeping(Path(f"/nix/store/{'a' * 32}-source")):
            pass


async def test_an_error_of_nix_is_reported(
    store: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nix_store(monkeypatch, tmp_path, "error: cannot connect to daemon: Connection refused")
    with pytest.raises(NixUnusable, match=r"nix-store --realise failed: .*Connection refused"):
        async with store.keeping(Path("/nix/store/x")):
            pass


# Seconds for what should not block.
_TIMEOUT = 20


@pytest.fixture
def trees(store: NixStore) -> TreeCache:
    return TreeCache(store)


class Making:
    """Creates a tree when the test says so."""

    def __init__(self, tree: Path) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.times = 0
        self._tree = tree

    async def __call__(self) -> Path:
        self.times += 1
        self.begun.set()
        await self.may_end.wait()
        return self._tree


async def test_a_tree_does_not_wait_for_a_slow_other_one(trees: TreeCache, tmp_path: Path) -> None:
    known, slow, other = Making(tmp_path), Making(tmp_path), Making(tmp_path)
    known.may_end.set()
    other.may_end.set()
    await trees.get("known", known)
    fetching = asyncio.ensure_future(trees.get("slow", slow))
    await slow.begun.wait()
    async with asyncio.timeout(_TIMEOUT):
        await trees.get("known", known)
        await trees.get("other", other)
    assert known.times == 1
    slow.may_end.set()
    assert await fetching == tmp_path


async def test_concurrent_requests_share_one_tree(trees: TreeCache, tmp_path: Path) -> None:
    making = Making(tmp_path)
    wanted = [asyncio.ensure_future(trees.get("one", making)) for _ in range(3)]
    await making.begun.wait()
    making.may_end.set()
    assert await asyncio.gather(*wanted) == [tmp_path] * 3
    assert making.times == 1
