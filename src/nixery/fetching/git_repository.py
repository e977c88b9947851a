"""A bare copy of a git repository, with the commits that were asked for."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from nixery.errors import BuildTimedOut, NixUnusable, SourceUnreachable, StorageError, TagUnknown
from nixery.nix.command import run_command
from nixery.nix.process import Surroundings
from nixery.sources.location import without_credentials

# Seconds. A shallow fetch of nixpkgs is 45 MB.
_FETCH = 600
_LOOK_UP = 60

# Seconds between two looks whether another server is done.
_LOOK_AGAIN = 0.1

# What a server says that hands out commits by their digits, and has not got this one (git's upload-pack.c).
_NOT_THERE = "not our ref"


class GitRepository:
    """Runs git, with the credentials that this user has, and never asks for any.

    Args:
        url: of the repository.
        copies: directory in which the copy is; made if it does not exist. Servers on one storage share it.
        environment: of git.

    Attributes:
        shown: the URL without credentials.
    """

    def __init__(self, url: str, copies: Path, environment: Mapping[str, str]) -> None:
        self._url = url
        self.shown = without_credentials(url)
        self._directory = copies / hashlib.sha256(url.encode()).hexdigest()[:16]
        # Nobody is there to type a password. Messages in English, since some are looked into.
        unattended = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}
        ssh = {"GIT_SSH_COMMAND": environment.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")}
        self._surroundings = Surroundings({**environment, **unattended, **ssh})
        self._lock = asyncio.Lock()
        self._inherited: tuple[int, ...] = ()

    async def look_up(self, reference: str) -> str:
        """Return the commit of ``HEAD``, or of a branch or a tag; a branch wins.

        Raises:
            TagUnknown: there is neither.
            SourceUnreachable: the repository cannot be asked.
        """
        names = (
            ["HEAD"]
            if reference == "HEAD"
            else [
                f"refs/heads/{reference}",
                f"refs/tags/{reference}^{{}}",  # what an annotated tag is of
                f"refs/tags/{reference}",
            ]
        )
        # Without the copy: it may not be there yet.
        listed = self._told(await self._git_anywhere("ls-remote", "--", self._url, *names))
        commits = {name: commit for commit, _, name in (line.partition("\t") for line in listed.splitlines())}
        found = next((commits[name] for name in names if name in commits), None)
        if found is None:
            raise TagUnknown(reference, f"{self.shown} has no branch or tag of that name")
        return found

    async def fetch(self, commit: str) -> int:
        """Make sure that a commit is here; return its date, in seconds since the epoch.

        Raises:
            TagUnknown: the repository does not have it.
            SourceUnreachable: the repository cannot be asked.
        """
        async with self._exclusively():
            if not await self._has(commit):
                await self._fetch(commit)
            shown = await self._local("show", "--no-patch", "--format=%ct", commit)
        return int(shown.split()[-1])

    async def archive(self, commit: str, place: Path) -> None:
        """Write a commit's files, as a tar archive.

        Raises:
            StorageError: the copy is damaged, or the disk is full.
        """
        await self._local("archive", "--format=tar", f"--output={place}", commit)

    async def _has(self, commit: str) -> bool:
        completed, _ = await self._git("cat-file", "-e", f"{commit}^{{commit}}", seconds=_LOOK_UP)
        return completed == 0

    async def _fetch(self, commit: str) -> None:
        # Most servers hand out a commit by its digits alone. The reference keeps it from git's own garbage collector.
        kept = f"refs/nixery/{commit}"
        shallow, said = await self._git(
            "fetch", "--quiet", "--no-tags", "--depth=1", "--", self._url, f"{commit}:{kept}", seconds=_FETCH
        )
        if shallow == 0 and await self._has(commit):
            return
        if _NOT_THERE in said:
            raise TagUnknown(commit, f"{self.shown} has no such commit")
        # This one does not. All that it has is a lot, but it is had once.
        everything = ("--no-tags", "--", self._url, "+refs/*:refs/remote/*")
        self._told(await self._git("fetch", "--quiet", *everything, seconds=_FETCH))
        if not await self._has(commit):
            raise TagUnknown(commit, f"{self.shown} has no such commit")
        await self._local("update-ref", kept, commit)

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        """Keep other coroutines, and other servers, from fetching into the same copy."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)
                descriptor = os.open(
                    self._directory / "nixery.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
                )
            except OSError as error:
                raise StorageError(
                    f"cannot keep git repositories in the storage: {error.strerror}"
                ) from error
            try:
                await _lock(descriptor)
                # Git holds the lock as well: if we are killed, it is not given up before git has ended.
                self._inherited = (descriptor,)
                await self._make_usable()
                yield
            finally:
                self._inherited = ()
                os.close(descriptor)

    async def _make_usable(self) -> None:
        # Nobody else is at work, so whoever left a lock of git's own was killed with it. Git would refuse to go on, for ever.
        await asyncio.to_thread(self._remove_locks)
        if not ((self._directory / "HEAD").exists() and (self._directory / "config").exists()):
            completed, said = await self._git_anywhere(
                "init", "--quiet", "--bare", "--template=", str(self._directory)
            )
            if completed != 0:
                raise StorageError(f"cannot make a git repository in the storage: {said}")

    def _remove_locks(self) -> None:
        for lock in (*self._directory.glob("*.lock"), *(self._directory / "refs").rglob("*.lock")):
            if lock.name != "nixery.lock":
                lock.unlink(missing_ok=True)

    def _told(self, outcome: tuple[int, str]) -> str:
        """Return what the remote repository has told, if it has."""
        completed, output = outcome
        if completed != 0:
            raise SourceUnreachable(f"cannot read {self.shown}: {output}")
        return output

    async def _local(self, *arguments: str) -> str:
        completed, output = await self._git(*arguments, seconds=_FETCH)
        if completed != 0:
            raise StorageError(f"git {arguments[0]} failed: {output}")
        return output

    async def _git(self, *arguments: str, seconds: float) -> tuple[int, str]:
        return await self._git_anywhere("--git-dir", str(self._directory), *arguments, seconds=seconds)

    async def _git_anywhere(self, *arguments: str, seconds: float = _LOOK_UP) -> tuple[int, str]:
        """Run git; return its status with its output or, if it failed, the last line of what it said."""
        try:
            surroundings = replace(self._surroundings, descriptors=self._inherited)
            completed, stderr = await run_command(seconds, "git", *arguments, surroundings=surroundings)
        except NixUnusable as error:
            raise SourceUnreachable(str(error)) from error
        except BuildTimedOut as error:
            raise SourceUnreachable(f"{self.shown} did not answer within {seconds:g} seconds") from error
        if completed.exit_code == 0:
            return 0, completed.stdout.decode(errors="replace")
        said = [line for line in stderr if line.startswith(("fatal:", "error:"))] or list(stderr)
        text = (said[0] if said else "").removeprefix("fatal: ")
        return completed.exit_code, text.replace(self._url, self.shown)


async def _lock(descriptor: int) -> None:
    # Not in a thread: one that waits cannot be ended, and another server may fetch for minutes.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_LOOK_AGAIN)
        else:
            return
