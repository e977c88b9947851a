import os
from pathlib import Path

import pytest

from nixery.errors import NixUnusable, PathsCollected
from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots
from nixery.sources.trees import NixStore


@pytest.fixture
def store(tmp_path: Path) -> NixStore:
    roots, collector = GarbageCollectorRoots(tmp_path / "roots"), CollectorLock(tmp_path / "state")
    # Tests change it, before a command runs.
    return NixStore(roots, collector, os.environ)


def nix_store_says(monkeypatch: pytest.MonkeyPatch, directory: Path, said: str, status: int = 1) -> None:
    """Stand in for Nix at a moment that it is hard to have it in; with the words of Nix 2.8."""
    program = directory / "bin" / "nix-store"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.fixture
def tree() -> Path:
    """A store path whose files are there."""
    return next(entry for entry in Path("/nix/store").iterdir() if "-" in entry.name)


@pytest.mark.parametrize(
    "said",
    [
        "don't know how to build these paths:\n  {tree}\nerror: build of '{tree}' failed",
        "error: build of '{tree}' failed",
    ],
    ids=["before the command", "in the middle of it"],
)
async def test_a_tree_that_is_being_deleted_is_gone(
    store: NixStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    # The database has no more of it.
    nix_store_says(monkeypatch, tmp_path, said.format(tree=tree))
    with pytest.raises(PathsCollected):
        async with store.keeping(tree):
            pass


async def test_a_tree_that_went_before_its_root_was_there_is_gone(
    store: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nix_store_says(monkeypatch, tmp_path, "", status=0)
    with pytest.raises(PathsCollected):
        async with store.keeping(Path(f"/nix/store/{'a' * 32}-source")):
            pass


async def test_a_nix_that_does_not_work_is_told(
    store: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nix_store_says(monkeypatch, tmp_path, "error: cannot connect to daemon: Connection refused")
    with pytest.raises(NixUnusable, match=r"nix-store --realise failed: .*Connection refused"):
        async with store.keeping(Path("/nix/store/x")):
            pass
