"""With real git, and real repositories."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from nixery.errors import AnswerTooLarge, StorageError, TagUnknown
from nixery.nix.processes import Completed, ProcessContext, run_command
from nixery.oci.documents import Architecture, ExecutionParameters, image_config
from nixery.source_location import SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.git_commands import Git
from nixery.sources.git_repository import GitRepository
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
    async with one._copy.exclusively() as copy:
        # As a child has it: another descriptor of the same open file.
        (inherited,) = copy._descriptors
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


async def test_old_commits_are_forgotten(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.git_repository._KEPT", 3)
    copy = copy_of(repository, tmp_path / "copies")
    commits = [repository.commit(f"{number}.0") for number in range(6)]
    for number, commit in enumerate(commits):
        await copy.fetch(commit)
        # One that is used again is not old.
        await copy.fetch(commits[0])
        for age, other in enumerate(commits[: number + 1]):
            path = copy._copy.directory / "refs/nixery" / other
            if path.exists() and other != commits[0]:
                os.utime(path, (age, age))
    kept = sorted(path.name for path in (copy._copy.directory / "refs/nixery").iterdir())
    assert kept == sorted([commits[0], *commits[4:]])
    # What was forgotten is fetched again.
    assert await copy.fetch(commits[1])


async def test_forgotten_commits_are_collected(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.sources.git_repository._KEPT", 1)
    monkeypatch.setattr("nixery.sources.git_repository._PACKS", 1)
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


async def test_a_file_that_has_no_end(
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


async def test_git_that_does_not_fetch_inherits_no_lock(
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


async def test_a_commit_is_told_nothing_of_our_keys(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With `export-subst`, git has gpg look at the signature of a commit, and writes into its files what gpg says of our keys.
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
async def test_a_commit_of_a_few_kilobytes_with_more_than_a_million_files(
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
async def test_a_commit_without_a_date_that_can_be_read(
    repository: Repository, tmp_path: Path, date: str
) -> None:
    tree = repository.git("mktree")
    content = f"tree {tree}\nauthor a <a@b> 1 +0000\ncommitter a <a@b>{date}\n\nx\n".encode()
    commit = repository.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", content=content)
    repository.git("update-ref", "refs/heads/main", commit)
    created = await copy_of(repository, tmp_path / "copies").fetch(commit)
    config = image_config(Architecture("amd64"), ExecutionParameters(), (), created)
    assert b'"created":"1970-01-01T00:00:01Z"' in config.content


async def test_the_memory_of_git_is_bounded(tmp_path: Path) -> None:
    git = Git(SourceLocation.parse(f"file://{tmp_path}"), os.environ)
    status, kilobytes = await git.local("-c", "alias.bound=!ulimit -d", "bound")
    assert status == 0
    assert int(kilobytes) <= 4 * 1024**2
