"""A bare repository in the storage, into which one git process at a time fetches."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nixery.errors import StorageError
from nixery.fetching.git_command import FETCH, Git, command_of
from nixery.nix.process import USUAL_ANSWER

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
