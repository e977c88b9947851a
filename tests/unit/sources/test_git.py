"""Unpacking commits, with real git; the Nix store is left out."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from nixery.files import remove_tree
from nixery.source_location import SourceLocation
from nixery.sources import git
from nixery.sources.commits import CommitRule
from nixery.sources.git import GitSource
from nixery.sources.git_repository import GitRepository
from nixery.sources.trees import NixStore
from tests.support.repository import Repository


class _Store:
    """Keeps nothing but the names of the files that were to be copied."""

    added: tuple[str, ...] = ()

    async def add(self, tree: Path) -> Path:
        self.added = tuple(sorted(os.listdir(tree)))  # noqa: PTH208 -- a few names
        return tree.parent.parent

    @asynccontextmanager
    async def keeping(self, path: Path) -> AsyncIterator[None]:
        assert str(path)
        yield


@pytest.mark.security
async def test_files_of_a_commit_are_removed_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as many as whoever pushed it wanted."""
    repository = Repository(tmp_path / "repository")
    commit = repository.commit("1.0")
    (temporary := tmp_path / "temporary").mkdir()
    location, rule = SourceLocation.parse(repository.url), CommitRule.parse("reachable")
    copy = GitRepository(location, tmp_path / "copies", os.environ, rule)
    store = _Store()
    source = GitSource(location, copy, rule, temporary, cast("NixStore", store), os.environ)
    removing = []

    def remove(path: Path) -> None:
        removing.append(threading.current_thread())
        remove_tree(path)

    monkeypatch.setattr(git, "remove_tree", remove)
    async with source.open(await source.resolve(source.reference(commit))):
        assert store.added == ("default.nix",)
        assert not any(temporary.iterdir())
    assert removing
    assert threading.main_thread() not in removing
