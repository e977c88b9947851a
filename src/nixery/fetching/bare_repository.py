"""A bare repository in the storage, into which one git at a time fetches."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nixery.errors import StorageError
from nixery.fetching.git_command import FETCH, Git, command_of

# Seconds between two looks whether another server is done.
_LOOK_AGAIN = 0.1


class BareRepository:
    """A bare repository in the storage, into which one git at a time fetches. Servers on one storage share it.

    Args:
        git: of the repository that it is a copy of.
        directory: made if it does not exist.
    """

    def __init__(self, git: Git, directory: Path) -> None:
        self.directory = directory
        self._git = git
        self._lock = asyncio.Lock()
        self._inherited: tuple[int, ...] = ()

    async def fetch(self, *arguments: str) -> tuple[int, str]:
        """Fetch from the repository that this is a copy of; return git's status, and what it said."""
        return await self._git.contact(
            *("--git-dir", str(self.directory), "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
            *arguments,
            seconds=FETCH,
            descriptors=self._inherited,
        )

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run git on what is here; return its status, with its output or what it said."""
        return await self._git.local(
            "--git-dir", str(self.directory), *arguments, descriptors=self._inherited
        )

    async def require(self, *arguments: str) -> str:
        """Run git on what is here; return its output.

        Raises:
            StorageError: the copy is damaged, or the disk is full.
        """
        status, output = await self.run(*arguments)
        if status != 0:
            raise StorageError(f"git {command_of(arguments)} failed: {output}")
        return output

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """Keep other coroutines, and other servers, from fetching into this copy."""
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
                # Git holds the lock as well: if we are killed, it is not given up before git has ended.
                self._inherited = (descriptor,)
                await self._make_usable()
                yield
            finally:
                self._inherited = ()
                os.close(descriptor)

    def exists(self) -> bool:
        """Whether anything was fetched into it."""
        return (self.directory / "HEAD").exists() and (self.directory / "config").exists()

    async def _make_usable(self) -> None:
        # Nobody else is at work, so whoever left a lock of git's own was killed with it. Git would refuse to go on, for ever.
        await asyncio.to_thread(self._remove_leftovers)
        if not await asyncio.to_thread(self.exists):
            status, said = await self._git.local(
                "init", "--quiet", "--bare", "--template=", str(self.directory), descriptors=self._inherited
            )
            if status != 0:
                raise StorageError(f"cannot make a git repository in the storage: {said}")

    def _remove_leftovers(self) -> None:
        locks = [*self.directory.glob("*.lock"), *(self.directory / "refs").rglob("*.lock")]
        # Packs that were being received.
        unfinished = (self.directory / "objects" / "pack").glob("tmp_*")
        for path in (*locks, *unfinished, *self.directory.glob("objects/info/**/*.lock")):
            if path.name != "nixery.lock":
                path.unlink(missing_ok=True)


async def _lock(descriptor: int) -> None:
    # Not in a thread: one that waits cannot be ended, and another server may fetch for minutes.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_LOOK_AGAIN)
        else:
            return
