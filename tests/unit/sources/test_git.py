"""With real git and real repositories; the Nix store is a fake."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from nixery.errors import AnswerTooLarge, SourceUnreachable, StorageError, TagUnknown
from nixery.files import remove_tree
from nixery.nix.processes import Completed, ProcessContext, run_command
from nixery.nix.trees import NixStore
from nixery.oci.documents import Architecture, ExecutionParameters, image_config
from nixery.source_location import SourceLocation
from nixery.sources import git
from nixery.sources.git import CommitHistory, GitRepository, GitSource
from nixery.sources.git_commands import BareRepository, Git
from nixery.sources.source import CommitRule
from tests.support.git_server import GitServer, git_server
from tests.support.repository import Repository

# Seconds for what should not block.
_TIMEOUT = 60


class _Store:
    """Records only the names of the files to copy."""

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


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def copy_of(repository: Repository, copies: Path) -> GitRepository:
    location = SourceLocation.parse(repository.url)
    return GitRepository(location, copies, os.environ, CommitRule.parse("reachable"))


async def test_servers_fetch_into_one_copy_at_the_same_time(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    servers = [copy_of(repository, tmp_path / "copies") for _ in range(6)]
    assert set(await asyncio.gather(*(server.fetch(commit) for server in servers))) == {1_700_000_000}


@pytest.mark.parametrize("place", ["shallow.lock", "packed-refs.lock", "config.lock", "refs/nixery/{}.lock"])
async def test_locks_of_a_killed_git_are_removed(repository: Repository, tmp_path: Path, place: str) -> None:
    commits = [repository.commit(f"{number}.0") for number in range(3)]
    await copy_of(repository, tmp_path / "copies").fetch(commits[0])
    (copy,) = (tmp_path / "copies").iterdir()
    lock = copy / place.format(commits[2])
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    await copy_of(repository, tmp_path / "copies").fetch(commits[2])
    # Only that commit was fetched.
    with pytest.raises(StorageError):
        await copy_of(repository, tmp_path / "copies").archive(commits[1], tmp_path / "archive")


async def test_a_git_that_outlives_its_server_keeps_the_lock(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit("1.0")
    one, other = (copy_of(repository, tmp_path / "copies") for _ in range(2))
    async with one._copy.exclusively() as copy:
        # Like a child's descriptor: a duplicate of the same open file.
        (inherited,) = copy._descriptors
        childs = os.dup(inherited)
    refused, flock = asyncio.Event(), fcntl.flock

    def watched(descriptor: int, operation: int) -> None:
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            refused.set()
            raise

    monkeypatch.setattr(fcntl, "flock", watched)
    waiting = asyncio.ensure_future(other.fetch(commit))
    try:
        await asyncio.wait_for(refused.wait(), _TIMEOUT)
        assert not waiting.done()
    finally:
        os.close(childs)
    await waiting


async def test_a_commit_that_the_copy_has_needs_no_lock(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    one, other = (copy_of(repository, tmp_path / "copies") for _ in range(2))
    await one.fetch(commit)
    async with one._copy.exclusively():
        assert await asyncio.wait_for(other.fetch(commit), _TIMEOUT) == 1_700_000_000


async def test_a_missing_commit_fetches_nothing_else(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("1.0")
    copy = copy_of(repository, tmp_path / "copies")
    with pytest.raises(TagUnknown):
        await copy.fetch("0123456789" * 4)
    # The search fetched nothing else.
    with pytest.raises(StorageError):
        await copy.archive(commit, tmp_path / "archive")


async def test_a_copy_that_cannot_be_created_is_a_storage_error(
    repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "copies").write_text("a file")
    with pytest.raises(StorageError, match="Not a directory"):
        await copy_of(repository, tmp_path / "copies").fetch(repository.commit("1.0"))


async def test_old_commits_are_forgotten(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.git._KEPT", 3)
    copy = copy_of(repository, tmp_path / "copies")
    commits = [repository.commit(f"{number}.0") for number in range(6)]
    for number, commit in enumerate(commits):
        await copy.fetch(commit)
        # A commit that is used again is not old.
        await copy.fetch(commits[0])
        for age, other in enumerate(commits[: number + 1]):
            path = copy._copy.directory / "refs/nixery" / other
            if path.exists() and other != commits[0]:
                os.utime(path, (age, age))
    kept = sorted(path.name for path in (copy._copy.directory / "refs/nixery").iterdir())
    assert kept == sorted([commits[0], *commits[4:]])
    # A forgotten commit is fetched again.
    assert await copy.fetch(commits[1])


async def test_forgotten_commits_are_garbage_collected(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.git._KEPT", 1)
    monkeypatch.setattr("nixery.sources.git._PACKS", 1)
    copy = copy_of(repository, tmp_path / "copies")
    commits = []
    for number in range(4):
        # Large enough to be kept as a pack.
        for name in range(120):
            (repository.directory / f"file{name}").write_text(f"{number} {name}")
        commits.append(repository.commit(f"{number}.0"))
        await copy.fetch(commits[-1])
    status, _ = await copy._copy.run("cat-file", "-e", commits[0])
    assert status != 0
    status, _ = await copy._copy.run("cat-file", "-e", commits[-1])
    assert status == 0


async def test_a_file_over_the_limit_is_not_written(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.git_commands._LARGEST_FILE", 1 << 16)
    repository.write("1.0")
    (repository.directory / "zeros").write_bytes(bytes(1 << 20))
    commit = repository.commit("1.0")
    copy = copy_of(repository, tmp_path / "copies")
    await copy.fetch(commit)
    with pytest.raises(StorageError, match="git archive failed"):
        await copy.archive(commit, tmp_path / "archive")
    assert (tmp_path / "archive").stat().st_size <= 1 << 16


async def test_a_git_without_the_lock_does_not_inherit_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ``ls-remote`` that began during a fetch kept other servers from fetching for as long as it took."""
    commit = repository.commit("1.0")
    one = copy_of(repository, tmp_path / "copies")
    await one.fetch(commit)
    given: list[tuple[int, ...]] = []

    async def spied(
        seconds: float, *arguments: str, context: ProcessContext
    ) -> tuple[Completed, Sequence[str]]:
        given.append(context.descriptors)
        return await run_command(seconds, *arguments, context=context)

    monkeypatch.setattr("nixery.sources.git_commands.run_command", spied)
    async with one._copy.exclusively() as copy:
        await one.look_up("HEAD")
        await one.archive(commit, tmp_path / "archive")
        assert set(given) == {()}
        given.clear()
        await copy.run("count-objects")
    assert [len(descriptors) for descriptors in given] == [1]


async def test_git_archive_reveals_no_keys_of_the_operator(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With `export-subst`, git runs gpg on the signature of a commit, and writes gpg's output about the user's
    # keys into its files.
    (repository.directory / ".gitattributes").write_text("* export-subst\n")
    (repository.directory / "default.nix").write_text('"$Format:%GS$"')
    repository.git("add", "--all")
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ\n -----END PGP SIGNATURE-----\n"
    content = f"tree {repository.git('write-tree')}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n{signature}\nm\n"
    commit = repository.git("hash-object", "-t", "commit", "-w", "--stdin", content=content.encode())
    repository.git("update-ref", "refs/heads/main", commit)
    gpg = tmp_path / "programs" / "gpg"
    gpg.parent.mkdir()
    gpg.write_text("#!/bin/sh\nprintf '\\n[GNUPG:] GOODSIG 0123456789ABCDEF %s\\n' \"keys in $GNUPGHOME\"\n")
    gpg.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gpg.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GNUPGHOME", "/our/keys")
    copy = copy_of(repository, tmp_path / "copies")
    await copy.fetch(commit)
    await copy.archive(commit, tmp_path / "archive.tar")
    assert b'"keys in /dev/null"' in (tmp_path / "archive.tar").read_bytes()


@pytest.mark.security
async def test_git_archive_runs_no_filter_of_the_operator(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("secret")
    configuration = tmp_path / "gitconfig"
    configuration.write_text(f'[filter "vault"]\n\tsmudge = "cat {tmp_path}/key; cat"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    (repository.directory / ".gitattributes").write_text("* filter=vault\n")
    commit = repository.commit("1.0")
    copy = copy_of(repository, tmp_path / "copies")
    await copy.fetch(commit)
    await copy.archive(commit, tmp_path / "archive.tar")
    archived = (tmp_path / "archive.tar").read_bytes()
    assert b"version" in archived
    assert b"secret" not in archived


@pytest.mark.security
async def test_a_small_commit_with_more_than_a_million_files_is_refused(
    repository: Repository, tmp_path: Path
) -> None:
    blob = repository.git("hash-object", "-w", "--stdin", content=b"{}")
    tree = repository.git(
        "mktree", content="".join(f"100644 blob {blob}\t{i}\n" for i in range(110)).encode()
    )
    for _ in range(2):
        entries = "".join(f"040000 tree {tree}\t{i}\n" for i in range(110))
        tree = repository.git("mktree", content=entries.encode())
    commit = repository.git("commit-tree", "-m", "x", tree)
    repository.git("update-ref", "refs/heads/main", commit)
    copy = copy_of(repository, tmp_path / "copies")
    await copy.fetch(commit)
    with pytest.raises(AnswerTooLarge, match=f"the list of files of commit {commit} is too large"):
        await copy.archive(commit, tmp_path / "archive.tar")
    assert not (tmp_path / "archive.tar").exists()


@pytest.mark.parametrize("date", ["", " 1700000000000000000000000000000 +0000", " x +0000"])
async def test_a_commit_with_an_invalid_date_has_none(
    repository: Repository, tmp_path: Path, date: str
) -> None:
    tree = repository.git("mktree")
    content = f"tree {tree}\nauthor a <a@b> 1 +0000\ncommitter a <a@b>{date}\n\nx\n".encode()
    commit = repository.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", content=content)
    repository.git("update-ref", "refs/heads/main", commit)
    created = await copy_of(repository, tmp_path / "copies").fetch(commit)
    config = image_config(Architecture("amd64"), ExecutionParameters(), (), created)
    assert b'"created":"1970-01-01T00:00:01Z"' in config.content


async def test_the_memory_of_git_is_limited(tmp_path: Path) -> None:
    git = Git(SourceLocation.parse(f"file://{tmp_path}"), os.environ)
    status, kilobytes = await git.local("-c", "alias.bound=!ulimit -d", "bound")
    assert status == 0
    assert int(kilobytes) <= 4 * 1024**2


@pytest.fixture
def served(tmp_path: Path) -> Repository:
    served = Repository(tmp_path / "served" / "set")
    served.git("config", "uploadpack.allowFilter", "true")
    served.git("config", "uploadpack.allowAnySHA1InWant", "true")
    return served


@pytest.fixture
def web(served: Repository) -> Iterator[GitServer]:
    with git_server(served.directory.parent) as web:
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


async def test_only_commits_of_branches_and_tags_are_accepted(served: Repository, world: World) -> None:
    first = served.commit("1.0")
    served.git("checkout", "--quiet", "-b", "topic")
    tagged = served.commit("1.1")
    served.git("tag", "--annotate", "--message", "x", "v1")
    fork = served.commit("666")
    served.git("update-ref", "refs/pull/1/head", fork)
    dangling = served.commit("667")
    served.git("checkout", "--quiet", "main")
    served.git("branch", "--delete", "--force", "topic")
    last = served.commit("2.0")
    assert [await world.accepts(c) for c in (first, tagged, last)] == [True, True, True]
    assert [await world.accepts(c) for c in (fork, dangling, "f" * 40)] == [False, False, False]
    # The server would have served them to a client that asks for a missing object.
    assert not await world.has(fork)
    assert not await world.has(dangling)


async def test_a_tip_of_a_branch_is_accepted_without_a_fetch(served: Repository, world: World) -> None:
    served.commit("1.0")
    last = served.commit("2.0")
    assert await world.accepts(last)
    assert not world.directory.exists()


async def test_a_history_has_no_files(served: Repository, world: World) -> None:
    first = served.commit("1.0")
    served.commit("2.0")
    assert await world.accepts(first)
    assert await world.has(first)
    assert not await world.has(served.git("rev-parse", f"{first}^{{tree}}"))


async def test_unknown_commits_share_one_request(served: Repository, world: World, web: GitServer) -> None:
    first = served.commit("1.0")
    served.commit("2.0")
    assert await world.accepts(first)
    web.requests.clear()
    for number in range(20):
        assert not await world.accepts(f"{number:040x}")
    assert web.requests == []
    # Later the server lists the branches, and fetches nothing since they have not moved.
    world.now += 60
    for number in range(20):
        assert not await world.accepts(f"{number:040x}")
    assert [request for request in web.requests if request.startswith("GET")] == [
        "GET /set/.git/info/refs?service=git-upload-pack"
    ]
    # After that time, new commits are found at once.
    new = served.commit("3.0")
    world.now += 60
    assert await world.accepts(new)
    served.commit("4.0")
    newer = served.commit("5.0")
    served.commit("6.0")
    world.now += 60
    assert await world.accepts(newer)


async def test_a_commit_of_a_branch_that_was_reset_is_refused(served: Repository, world: World) -> None:
    first = served.commit("1.0")
    gone = served.commit("2.0")
    served.commit("2.1")
    assert await world.accepts(gone)
    served.git("reset", "--hard", "--quiet", first)
    served.commit("3.0")
    served.commit("3.1")
    world.now += 60
    # An unknown commit makes the server list the branches again; known commits are cached.
    assert not await world.accepts("f" * 40)
    assert not await world.accepts(gone)


async def test_patterns_select_branches(served: Repository, tmp_path: Path, web: GitServer) -> None:
    main = served.commit("1.0")
    for branch in ("main2", "release-1", "topic"):
        served.git("checkout", "--quiet", "-b", branch)
        served.commit(branch)
        served.commit(f"{branch}b")
    commits = {branch: served.git("rev-parse", f"{branch}~1") for branch in ("main2", "release-1", "topic")}
    # Of "main" and "release-1": the latter contains the commits of "main2", from which it was created.
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


@pytest.mark.security
@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u3000"])
@pytest.mark.parametrize("is_tip", [True, False])
async def test_the_name_of_a_branch_is_not_taken_for_another_name(
    served: Repository, tmp_path: Path, web: GitServer, separator: str, *, is_tip: bool
) -> None:
    # git accepts separators of lines and words that are not in ASCII.
    main = served.commit("1.0")
    served.git("checkout", "--quiet", "-b", f"main{separator}{main}")
    commit = served.commit("666")
    if not is_tip:
        served.commit("667")
    world = World(tmp_path, f"{web.url}/set/.git", "main")
    assert [await world.accepts(one) for one in (commit, main)] == [False, True]


@pytest.mark.security
async def test_a_branch_of_any_name_does_not_hide_others(served: Repository, world: World) -> None:
    main = served.commit("1.0")
    served.git("branch", "x\u2028y")
    assert await world.accepts(main)


async def test_the_rule_any_accepts_every_commit(served: Repository, tmp_path: Path) -> None:
    assert await World(tmp_path, served.url, "any").accepts("f" * 40)


async def test_an_unreachable_repository_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        await World(tmp_path, "http://127.0.0.1:1/set").accepts("f" * 40)


async def test_a_server_without_filters_is_supported(served: Repository, world: World) -> None:
    served.git("config", "--unset", "uploadpack.allowFilter")
    first = served.commit("1.0")
    served.commit("2.0")
    assert await world.accepts(first)
    assert not await world.accepts("f" * 40)


async def test_servers_share_a_history(served: Repository, tmp_path: Path, web: GitServer) -> None:
    first = served.commit("1.0")
    served.commit("2.0")
    assert await World(tmp_path, f"{web.url}/set/.git").accepts(first)
    web.requests.clear()
    assert await World(tmp_path, f"{web.url}/set/.git").accepts(first)
    assert web.requests == []


@pytest.mark.security
@pytest.mark.parametrize("commit", ["--output=written", "/victim", "refs/heads/other", "f" * 39])
async def test_a_server_names_no_commit_that_is_an_option_or_a_path(
    served: Repository, tmp_path: Path, web: GitServer, commit: str
) -> None:
    # git prints a name with line breaks as several lines.
    served.commit("1.0")
    (victim := tmp_path / "victim").write_text("")
    os.utime(victim, (1, 1))
    chosen = commit.replace("written", str(tmp_path / "written")).replace("/victim", str(victim))
    location = SourceLocation.parse(f"{web.url}/set/.git")
    rule = CommitRule.parse("reachable")
    repository = GitRepository(location, tmp_path / "copies", os.environ, rule)
    source = GitSource(location, repository, rule, tmp_path, cast("NixStore", _Store()), os.environ)
    await source.resolve(source.reference("latest"))  # makes the copy
    web.listed = f"x\n{chosen}\tHEAD\ny/HEAD\n".encode()
    with pytest.raises(SourceUnreachable):
        await source.resolve(source.reference("latest"))
    assert victim.stat().st_mtime == 1
    assert not any(name.startswith("written") for name in os.listdir(tmp_path))  # noqa: PTH208 -- a few names
