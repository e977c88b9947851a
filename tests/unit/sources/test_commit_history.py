"""With real git: which commits clients may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.errors import SourceUnreachable, TagUnknown
from nixery.source_location import SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.git_commands import Git
from nixery.sources.git_repository import BareRepository, CommitHistory
from tests.support.git_server import GitServer, git_server
from tests.support.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "served" / "set")
    repository.git("config", "uploadpack.allowFilter", "true")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    return repository


@pytest.fixture
def web(repository: Repository) -> Iterator[GitServer]:
    with git_server(repository.directory.parent) as web:
        yield web


class World:
    def __init__(self, directory: Path, url: str, rule: str = "reachable") -> None:
        self.now = 1000.0
        self.git = Git(SourceLocation.parse(url), os.environ)
        self.directory = directory / "history"
        self.rule = CommitRule.parse(rule)
        self.history = CommitHistory(
            self.git, BareRepository(self.git, self.directory), self.rule, lambda: self.now
        )

    async def accepts(self, commit: str) -> bool:
        try:
            await self.history.require(commit)
        except TagUnknown:
            return False
        return True

    async def has(self, object_name: str) -> bool:
        status, _ = await self.git.local("--git-dir", str(self.directory), "cat-file", "-e", object_name)
        return status == 0


@pytest.fixture
def world(tmp_path: Path, web: GitServer) -> World:
    return World(tmp_path, f"{web.url}/set/.git")


async def test_only_what_branches_and_tags_lead_to(repository: Repository, world: World) -> None:
    first = repository.commit("1.0")
    repository.git("checkout", "--quiet", "-b", "topic")
    tagged = repository.commit("1.1")
    repository.git("tag", "--annotate", "--message", "x", "v1")
    fork = repository.commit("666")
    repository.git("update-ref", "refs/pull/1/head", fork)
    dangling = repository.commit("667")
    repository.git("checkout", "--quiet", "main")
    repository.git("branch", "--delete", "--force", "topic")
    last = repository.commit("2.0")
    assert [await world.accepts(c) for c in (first, tagged, last)] == [True, True, True]
    assert [await world.accepts(c) for c in (fork, dangling, "f" * 40)] == [False, False, False]
    # The server would have handed them out, to anybody who asks for an object that is missing.
    assert not await world.has(fork)
    assert not await world.has(dangling)


async def test_a_commit_at_the_end_of_a_branch_costs_a_question(repository: Repository, world: World) -> None:
    repository.commit("1.0")
    last = repository.commit("2.0")
    assert await world.accepts(last)
    assert not world.directory.exists()


async def test_files_are_no_part_of_a_history(repository: Repository, world: World) -> None:
    first = repository.commit("1.0")
    repository.commit("2.0")
    assert await world.accepts(first)
    assert await world.has(first)
    assert not await world.has(repository.git("rev-parse", f"{first}^{{tree}}"))


async def test_made_up_commits_share_one_question(
    repository: Repository, world: World, web: GitServer
) -> None:
    first = repository.commit("1.0")
    repository.commit("2.0")
    assert await world.accepts(first)
    web.requests.clear()
    for number in range(20):
        assert not await world.accepts(f"{number:040x}")
    assert web.requests == []
    # Later it is asked where the branches are, and nothing is fetched since they are where they were.
    world.now += 60
    for number in range(20):
        assert not await world.accepts(f"{number:040x}")
    assert [request for request in web.requests if request.startswith("GET")] == [
        "GET /set/.git/info/refs?service=git-upload-pack"
    ]
    # What has come since is found at once, if it is looked for after that time.
    new = repository.commit("3.0")
    world.now += 60
    assert await world.accepts(new)
    repository.commit("4.0")
    newer = repository.commit("5.0")
    repository.commit("6.0")
    world.now += 60
    assert await world.accepts(newer)


async def test_a_branch_that_was_forced_back(repository: Repository, world: World) -> None:
    first = repository.commit("1.0")
    gone = repository.commit("2.0")
    repository.commit("2.1")
    assert await world.accepts(gone)
    repository.git("reset", "--hard", "--quiet", first)
    repository.commit("3.0")
    repository.commit("3.1")
    world.now += 60
    # Something else has to be asked for: what is known is believed.
    assert not await world.accepts("f" * 40)
    assert not await world.accepts(gone)


async def test_patterns(repository: Repository, tmp_path: Path, web: GitServer) -> None:
    main = repository.commit("1.0")
    for branch in ("main2", "release-1", "topic"):
        repository.git("checkout", "--quiet", "-b", branch)
        repository.commit(branch)
        repository.commit(f"{branch}b")
    commits = {
        branch: repository.git("rev-parse", f"{branch}~1") for branch in ("main2", "release-1", "topic")
    }
    # Of "main" and "release-1": the latter holds those of "main2", from which it was made.
    world = World(tmp_path, f"{web.url}/set/.git", "main,release-*")
    found = {branch: await world.accepts(commit) for branch, commit in commits.items()}
    assert found == {"main2": True, "release-1": True, "topic": False}
    narrow = World(tmp_path / "narrow", f"{web.url}/set/.git", "main")
    assert [await narrow.accepts(commit) for commit in (main, *commits.values())] == [
        True,
        False,
        False,
        False,
    ]


async def test_any_commit_if_the_operator_says_so(repository: Repository, tmp_path: Path) -> None:
    assert await World(tmp_path, repository.url, "any").accepts("f" * 40)


async def test_a_repository_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        await World(tmp_path, "http://127.0.0.1:1/set").accepts("f" * 40)


async def test_a_server_without_filters(repository: Repository, world: World) -> None:
    repository.git("config", "--unset", "uploadpack.allowFilter")
    first = repository.commit("1.0")
    repository.commit("2.0")
    assert await world.accepts(first)
    assert not await world.accepts("f" * 40)


async def test_servers_that_share_a_storage(repository: Repository, tmp_path: Path, web: GitServer) -> None:
    first = repository.commit("1.0")
    repository.commit("2.0")
    assert await World(tmp_path, f"{web.url}/set/.git").accepts(first)
    web.requests.clear()
    assert await World(tmp_path, f"{web.url}/set/.git").accepts(first)
    assert web.requests == []
