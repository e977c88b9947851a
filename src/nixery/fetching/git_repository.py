"""A remote git repository: its branches and tags, and a bare copy with the commits that were requested."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nixery.errors import AnswerTooLarge, TagUnknown
from nixery.fetching.bare_repository import BareRepository, LockedRepository
from nixery.fetching.commit_history import CommitHistory
from nixery.fetching.git_command import LOOK_UP, Git
from nixery.sources.commits import CommitRule
from nixery.sources.location import SourceLocation

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
