"""A bare repository in the storage, into which one git process at a time fetches.

Which commits the branches and tags of a repository lead to.

A remote git repository: its branches and tags, and a bare copy with the commits that were requested.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nixery.errors import AnswerTooLarge, StorageError, TagUnknown
from nixery.nix.processes import USUAL_ANSWER
from nixery.source_location import SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.git_commands import FETCH, LOOK_UP, Git, command_of

# Seconds between two attempts to get a lock that another server holds.
_LOOK_AGAIN = 0.1


class _Commands:
    """Runs git on a bare repository.

    Args:
        git: of the original repository.
        directory: of the copy.
        descriptors: open files that git inherits.
    """

    def __init__(self, git: Git, directory: Path, descriptors: tuple[int, ...] = ()) -> None:
        self.directory = directory
        self._git = git
        self._descriptors = descriptors

    async def run(self, *arguments: str, answer: int = USUAL_ANSWER) -> tuple[int, str]:
        """Run git on the copy; return its status, and its output or error message.

        Raises:
            AnswerTooLarge: its output has more bytes than ``answer``.
        """
        return await self._git.local(
            "--git-dir", str(self.directory), *arguments, descriptors=self._descriptors, answer=answer
        )

    async def require(self, *arguments: str, answer: int = USUAL_ANSWER) -> str:
        """Run git on the copy; return its output.

        Raises:
            AnswerTooLarge: it has more bytes than ``answer``.
            StorageError: the copy is damaged, or the disk is full.
        """
        status, output = await self.run(*arguments, answer=answer)
        if status != 0:
            raise StorageError(f"git {command_of(arguments)} failed: {output}")
        return output


class LockedRepository(_Commands):
    """A bare repository whose lock is held. Only the git processes that it starts inherit the lock.

    If this process is killed, the lock is released when the last of them has ended.
    """

    async def fetch(self, *arguments: str) -> tuple[int, str]:
        """Fetch from the original repository; return git's status and error message."""
        return await self._git.contact(
            *("--git-dir", str(self.directory), "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
            *arguments,
            seconds=FETCH,
            descriptors=self._descriptors,
        )

    async def init(self) -> None:
        """Initialise the repository.

        Raises:
            StorageError: git fails.
        """
        status, said = await self._git.local(
            "init", "--quiet", "--bare", "--template=", str(self.directory), descriptors=self._descriptors
        )
        if status != 0:
            raise StorageError(f"cannot make a git repository in the storage: {said}")


class BareRepository(_Commands):
    """A bare repository in the storage, shared by servers. One git process at a time fetches into it.

    Args:
        git: of the original repository.
        directory: made if missing.
    """

    def __init__(self, git: Git, directory: Path) -> None:
        super().__init__(git, directory)
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[LockedRepository]:
        """Keep other coroutines, and other servers, from fetching into this copy.

        Raises:
            StorageError: the copy cannot be made.
        """
        async with self._lock:
            try:
                await asyncio.to_thread(self.directory.mkdir, parents=True, exist_ok=True)
                descriptor = os.open(
                    self.directory / "nixery.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
                )
            except OSError as error:
                raise StorageError(
                    f"cannot keep git repositories in the storage: {error.strerror}"
                ) from error
            try:
                await _lock(descriptor)
                locked = LockedRepository(self._git, self.directory, (descriptor,))
                # A killed server may have left git's own locks, with which git would refuse to run for ever.
                await asyncio.to_thread(self._remove_leftovers)
                if not await asyncio.to_thread(self.exists):
                    await locked.init()
                yield locked
            finally:
                os.close(descriptor)

    def exists(self) -> bool:
        """Whether anything was fetched into it."""
        return (self.directory / "HEAD").exists() and (self.directory / "config").exists()

    def _remove_leftovers(self) -> None:
        locks = [*self.directory.glob("*.lock"), *(self.directory / "refs").rglob("*.lock")]
        # Incomplete packs of interrupted fetches.
        unfinished = (self.directory / "objects" / "pack").glob("tmp_*")
        for path in (*locks, *unfinished, *self.directory.glob("objects/info/**/*.lock")):
            if path.name != "nixery.lock":
                path.unlink(missing_ok=True)


async def _lock(descriptor: int) -> None:
    # Polls instead of blocking in a thread: a blocked thread cannot be ended, and another server may fetch
    # for minutes.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_LOOK_AGAIN)
        else:
            return


# Seconds for which positions of branches and tags are cached: at most once in that time, an unknown commit
# costs a request.
_SETTLED = 5.0

# A pattern that is valid in git's refspecs, too: at most one asterisk.
_SIMPLE = re.compile(r"[\w./+@-]*\*?[\w./+@-]*", re.ASCII)

_HERE = "refs/remote/"
_KINDS = ("heads", "tags")


class CommitHistory:
    """Decides whether a branch or a tag leads to a commit.

    The repository beside the copy holds only commits of branches and tags, with all of their ancestors. A
    server that serves any commit cannot add one to it that is not in a branch or a tag. Servers that support
    it leave files out.

    Args:
        git: of the repository.
        commits: directory of that repository.
        rule: which branches and tags count.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        git: Git,
        commits: BareRepository,
        rule: CommitRule,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._git = git
        self._commits = commits
        self._rule = rule
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._tips: frozenset[tuple[str, str]] = frozenset()
        self._complete = False
        self._fetched = 0
        self._settled_until = -1.0

    async def require(self, commit: str) -> None:
        """Check that clients may ask for a commit.

        Raises:
            TagUnknown: no accepted branch or tag leads to it.
            SourceUnreachable: the repository does not answer.
        """
        if self._rule.checks and await self.find(commit) is None:
            raise self._rule.refusal(commit)

    async def find(self, commit: str) -> str | None:
        """Return an accepted branch or tag that leads to a commit, with ``refs/``; ``None`` if there is none.

        Raises:
            SourceUnreachable: the repository does not answer.
        """
        fetched = self._fetched
        if (name := await self._leading_to(commit)) is not None:
            return name
        async with self._one_at_a_time:
            # Another request that held the lock may have fetched it.
            if fetched != self._fetched:
                name = await self._leading_to(commit)
            name = name or self._tip(commit)
            if name is not None or (self._complete and self._clock() < self._settled_until):
                return name
            await self._look()
            if (name := self._tip(commit)) is not None or self._complete:
                return name
            await self._fetch()
            return await self._leading_to(commit)

    def _tip(self, commit: str) -> str | None:
        if self._clock() >= self._settled_until:
            return None
        return min((f"refs/{name}" for name, tip in self._tips if tip == commit), default=None)

    async def _leading_to(self, commit: str) -> str | None:
        if not await asyncio.to_thread(self._commits.exists):
            return None
        # Fails for a commit that is not in this repository, and fetches none.
        status, output = await self._commits.run(
            "for-each-ref",
            f"--contains={commit}",
            "--format=%(refname)",
            *(f"{_HERE}{kind}" for kind in _KINDS),
        )
        names = (name.removeprefix(_HERE) for name in output.split()) if status == 0 else ()
        return next((f"refs/{name}" for name in names if self._counts(name)), None)

    async def _look(self) -> None:
        """Read the positions of branches and tags: a small request, enough for their newest commits."""
        status, output = await self._git.contact(
            "ls-remote", "--heads", "--tags", "--", self._git.address, seconds=LOOK_UP
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        lines = (line.partition("\t") for line in output.splitlines())
        listed = {name.removeprefix("refs/"): commit for commit, _, name in lines}
        # git lists an annotated tag twice; the last line has its commit.
        peeled = {name.removesuffix("^{}"): commit for name, commit in listed.items()}
        tips = frozenset((name, commit) for name, commit in peeled.items() if self._counts(name))
        self._complete = self._complete and tips == self._tips
        self._tips = tips
        self._settled_until = self._clock() + _SETTLED

    async def _fetch(self) -> None:
        async with self._commits.exclusively() as locked:
            status, said = await locked.fetch(
                "--prune", "--filter=tree:0", "--", self._git.address, *self._refspecs()
            )
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        self._complete = True
        self._fetched += 1
        self._settled_until = self._clock() + _SETTLED

    def _refspecs(self) -> list[str]:
        patterns = self._rule.patterns if self._rule.patterns is not None else ("*",)
        if not all(_SIMPLE.fullmatch(pattern) for pattern in patterns):
            patterns = ("*",)
        # git fails for a missing reference, unless the refspec is a pattern.
        wanted = [pattern if "*" in pattern else f"{pattern}*" for pattern in patterns]
        return [f"+refs/{kind}/{pattern}:{_HERE}{kind}/{pattern}" for pattern in wanted for kind in _KINDS]

    def _counts(self, name: str) -> bool:
        kind, _, reference = name.partition("/")
        return kind in _KINDS and (not self._rule.checks or self._rule.admits(reference))


# Bytes of the list of a commit's files, of which each takes 54 and its name: a million files at most. That of nixpkgs has 5 MB.
_LARGEST_LIST = 64 * 1024 * 1024

# What a server says that hands out commits by their digits, and has not got this one (git's upload-pack.c).
_NOT_THERE = "not our ref"

# Commits that are kept, the most recently used ones; a pin to another one fetches it again.
_KEPT = 64
# Packs that git may have before it collects garbage.
_PACKS = 50
_KEPT_REFERENCES = "refs/nixery"


@dataclass(frozen=True, slots=True)
class Found:
    """The target of a branch or a tag.

    Attributes:
        commit: its digits.
        name: of the branch or tag, with ``refs/``; ``HEAD`` for the default branch.
    """

    commit: str
    name: str


class GitRepository:
    """Runs git with this user's credentials, and never asks for any.

    Args:
        location: of the repository.
        copies: directory of the copy; made if missing. Servers on one storage share it.
        environment: of git.
        rule: the commits that clients may ask for.

    Attributes:
        published: its URL in annotations of images; see ``SourceLocation``.
    """

    def __init__(
        self, location: SourceLocation, copies: Path, environment: Mapping[str, str], rule: CommitRule
    ) -> None:
        self.published = location.published
        self._git = Git(location, environment)
        name = hashlib.sha256(location.address.encode()).hexdigest()[:16]
        self._copy = BareRepository(self._git, copies / name)
        self._history = CommitHistory(self._git, BareRepository(self._git, copies / f"{name}-history"), rule)

    async def look_up(self, reference: str) -> Found:
        """Return the target of ``HEAD``, or of a branch or a tag; a branch takes precedence.

        Raises:
            TagUnknown: neither exists.
            SourceUnreachable: the repository does not answer.
        """
        branch, tag = f"refs/heads/{reference}", f"refs/tags/{reference}"
        # The second pattern gives the commit of an annotated tag.
        names = {"HEAD": "HEAD"} if reference == "HEAD" else {branch: branch, f"{tag}^{{}}": tag, tag: tag}
        # Without the copy: it may not be there yet.
        status, output = await self._git.contact(
            "ls-remote", "--", self._git.address, *names, seconds=LOOK_UP
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        commits = {name: commit for commit, _, name in (line.partition("\t") for line in output.splitlines())}
        found = next((name for name in names if name in commits), None)
        if found is None:
            raise TagUnknown(reference, f"{self._git.disclosure.name} has no branch or tag of that name")
        return Found(commits[found], names[found])

    async def leading_to(self, commit: str) -> str | None:
        """Return a branch or tag that leads to a commit, with ``refs/``; see ``CommitHistory``.

        Raises:
            SourceUnreachable: the repository does not answer.
        """
        return await self._history.find(commit)

    async def require_accepted(self, commit: str) -> None:
        """Check that clients may ask for a commit, before git fetches any of it.

        Raises:
            TagUnknown: they may not.
            SourceUnreachable: the repository does not answer.
        """
        await self._history.require(commit)

    async def fetch(self, commit: str) -> int:
        """Make sure that a commit is here; return its date, in seconds since the epoch.

        Raises:
            TagUnknown: the repository does not have it.
            SourceUnreachable: the repository cannot be asked.
        """
        async with self._copy.exclusively() as copy:
            if not await _has(copy, commit):
                await self._fetch(copy, commit)
                await self._forget_old(copy, commit)
            await asyncio.to_thread(self._mark_used, commit)
            shown = await copy.require("show", "--no-patch", "--no-show-signature", "--format=%ct", commit)
        return commit_date(shown)

    async def archive(self, commit: str, place: Path) -> None:
        """Write a commit's files, as a tar archive.

        Raises:
            AnswerTooLarge: the commit has too many files. A few kilobytes that are pushed may be billions: trees that hold one tree many
                times, which holds another one many times.
            StorageError: the copy is damaged, or the disk is full.
        """
        try:
            await self._copy.require("ls-tree", "-r", "-z", "--full-tree", commit, answer=_LARGEST_LIST)
        except AnswerTooLarge as error:
            raise AnswerTooLarge(f"the list of files of commit {commit}", error.limit) from error
        await self._copy.require("archive", "--format=tar", f"--output={place}", commit)

    async def _fetch(self, copy: LockedRepository, commit: str) -> None:
        # Most servers hand out a commit by its digits alone. The reference keeps it from git's own garbage collector.
        kept = f"{_KEPT_REFERENCES}/{commit}"
        status, said = await copy.fetch("--depth=1", "--", self._git.address, f"{commit}:{kept}")
        if status == 0 and await _has(copy, commit):
            return
        if _NOT_THERE in said:
            raise self._missing(commit)
        # This one does not. All that it has is a lot, but it is had once.
        status, said = await copy.fetch("--", self._git.address, "+refs/*:refs/remote/*")
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        if not await _has(copy, commit):
            raise self._missing(commit)
        await copy.require("update-ref", kept, commit)

    def _missing(self, commit: str) -> TagUnknown:
        return TagUnknown(commit, f"{self._git.disclosure.name} has no such commit")

    async def _forget_old(self, copy: LockedRepository, newest: str) -> None:
        """Drop the references of commits that were not used recently, and with them their objects."""
        listed = await copy.require("for-each-ref", "--format=%(refname)", _KEPT_REFERENCES)
        commits = [name.rpartition("/")[2] for name in listed.split()]
        if len(commits) <= _KEPT:
            return
        used = await asyncio.to_thread(lambda: {commit: self._last_use(commit) for commit in commits})
        oldest = sorted((commit for commit in commits if commit != newest), key=lambda commit: used[commit])
        for commit in oldest[: len(commits) - _KEPT]:
            await copy.require("update-ref", "-d", f"{_KEPT_REFERENCES}/{commit}")
        # A few packs of garbage cost less than repacking for each commit. References stay loose files: see
        # _last_use.
        collect = ("-c", "gc.auto=6700", "-c", f"gc.autoPackLimit={_PACKS}", "-c", "gc.autoDetach=false")
        keep = ("-c", "gc.packRefs=false", "-c", "gc.pruneExpire=now", "-c", "gc.reflogExpire=now")
        await copy.run(*collect, *keep, "gc", "--auto", "--quiet")

    def _last_use(self, commit: str) -> float:
        try:
            return (self._copy.directory / _KEPT_REFERENCES / commit).stat().st_mtime
        except OSError:
            return 0.0

    def _mark_used(self, commit: str) -> None:
        # Without a file, the reference is an old one that git has packed, or part of a full copy.
        path = self._copy.directory / _KEPT_REFERENCES / commit
        if path.exists():
            os.utime(path)


def commit_date(said: str) -> int:
    """Read what git says of a commit's date (``%ct``), in seconds since the epoch; 0 where a commit has none that can be read.

    Git passes on what a commit has in the date's place: nothing, or thousands of digits.
    """
    digits = (said.split() or [""])[-1]
    return int(digits) if re.fullmatch(r"[0-9]{1,20}", digits) else 0


async def _has(copy: LockedRepository, commit: str) -> bool:
    status, _ = await copy.run("cat-file", "-e", f"{commit}^{{commit}}")
    return status == 0
