"""With real git, and real repositories."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nixery.errors import StorageError, TagUnknown
from nixery.fetching.git_repository import GitRepository
from nixery.sources.commits import CommitRule
from nixery.sources.location import SourceLocation
from tests.support.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def copy_of(repository: Repository, copies: Path) -> GitRepository:
    location = SourceLocation.parse(repository.url)
    return GitRepository(location, copies, os.environ, CommitRule.parse("reachable"))


async def test_servers_that_begin_at_the_same_time(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    servers = [copy_of(repository, tmp_path / "copies") for _ in range(6)]
    assert set(await asyncio.gather(*(server.fetch(commit) for server in servers))) == {1_700_000_000}


@pytest.mark.parametrize("place", ["shallow.lock", "packed-refs.lock", "config.lock", "refs/nixery/{}.lock"])
async def test_what_a_killed_git_left_behind(repository: Repository, tmp_path: Path, place: str) -> None:
    commits = [repository.commit(f"{number}.0") for number in range(3)]
    await copy_of(repository, tmp_path / "copies").fetch(commits[0])
    (copy,) = (tmp_path / "copies").iterdir()
    lock = copy / place.format(commits[2])
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    await copy_of(repository, tmp_path / "copies").fetch(commits[2])
    # What was fetched is that commit, and not all there is.
    with pytest.raises(StorageError):
        await copy_of(repository, tmp_path / "copies").archive(commits[1], tmp_path / "archive")


async def test_git_that_outlives_its_server_keeps_others_away(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    one, other = (copy_of(repository, tmp_path / "copies") for _ in range(2))
    async with one._copy.exclusively():
        # As a child has it: another descriptor of the same open file.
        (inherited,) = one._copy._inherited
        childs = os.dup(inherited)
    waiting = asyncio.ensure_future(other.fetch(commit))
    try:
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
    finally:
        os.close(childs)
    await waiting


async def test_a_commit_that_is_not_there_costs_one_question(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    copy = copy_of(repository, tmp_path / "copies")
    with pytest.raises(TagUnknown):
        await copy.fetch("0123456789" * 4)
    # Nothing else was fetched to look for it.
    with pytest.raises(StorageError):
        await copy.archive(commit, tmp_path / "archive")


async def test_a_place_that_cannot_be_made(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("a file")
    with pytest.raises(StorageError, match="Not a directory"):
        await copy_of(repository, tmp_path / "copies").fetch(repository.commit("1.0"))
