"""Run git against a remote repository, and on bare copies of it in the storage.

Git has the operator's credentials, never asks for any, and does not trust the remote. Servers on one storage
share the copies; one git process at a time fetches into each.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from nixery.errors import NixTimedOut, NixUnusable, StorageError
from nixery.nix.environments import SAFE_GIT, with_git_settings
from nixery.nix.processes import USUAL_ANSWER, ProcessContext, run_command
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.source import Disclosure

# Seconds. A shallow fetch of nixpkgs is 45 MB.
FETCH_TIMEOUT = 600
LOOK_UP_TIMEOUT = 60

# Seconds between two attempts to get a lock that another server holds.
_POLL = 0.1

# Limit in bytes for a file that git writes: a pack, or the archive of a commit. All of nixpkgs' history is 4
# GB.
_LARGEST_FILE = 16 * 1024**3

# Limit in bytes for the memory of git, without the packs that it maps. A commit can have a message of any
# length, or thousands of placeholders for it (`export-subst`), all in memory. Repacking all of nixpkgs takes
# 2 GB.
_MOST_MEMORY = 4 * 1024**3

# A shell's argument; the secrets are only in the environment, where other users cannot read them.
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$NIXERY_GIT_USERNAME" "$NIXERY_GIT_PASSWORD"; }; f'

# For commands on local objects, which need no login. For some placeholders of `export-subst`, git archive runs gpg
# on the commit's signature and writes the name of its key into the files; and it has the filters of its
# configuration convert those that the commit's own `.gitattributes` names. Keys and filters of the operator, which may
# decrypt files for example, are no part of a package set.
_ALONE = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GNUPGHOME": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}

# For `sh -c`: limits for it and its children, for each file that they write (blocks of 512 bytes) and for
# memory (blocks of 1024 bytes). The operator may have set a lower limit for memory already.
_BOUNDED = 'ulimit -f "$1" && { ulimit -d "$2" 2>/dev/null || :; } && shift 2 && exec "$@"'


class Git:
    """Runs git with one repository's address and never asks for a password.

    Args:
        location: of the repository.
        environment: what git and SSH need.

    Attributes:
        address: of the repository, as an argument.
        disclosure: makes error messages about it.
    """

    def __init__(self, location: SourceLocation, environment: Mapping[str, str]) -> None:
        self.address = location.address
        self.disclosure = Disclosure(location)
        self._location = location
        # Fail instead of asking for a password. English, since some messages are searched for words.
        unattended = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true",
            "LC_ALL": "C",
            "GIT_SSH_COMMAND": environment.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
            "GIT_DEFAULT_REF_FORMAT": "files",
            "GIT_NO_LAZY_FETCH": "1",
        }
        settings = list(SAFE_GIT.items())
        if location.username is not None:
            # For this host alone, even if the server redirects to another one.
            where = "credential.{0.scheme}://{0.netloc}".format(urlsplit(location.address))
            # Without a password, the operator's helpers may know one for the user.
            first = [(f"{where}.username", location.username)]
            settings += [*(first if location.password is None else [(f"{where}.helper", "")])]
            settings += [(f"{where}.helper", _HELPER)]
            unattended["NIXERY_GIT_USERNAME"] = location.username
            unattended["NIXERY_GIT_PASSWORD"] = location.password or ""
        self._environment = with_git_settings({**environment, **unattended}, settings)
        self._protocols = "http:https:ssh:git" + (":file" if _is_local(location.address) else "")

    async def contact(
        self, *arguments: str, seconds: float, descriptors: tuple[int, ...] = ()
    ) -> tuple[int, str]:
        """Run git, which may contact the repository; return its status, with its output or its error message.

        Raises:
            SourceUnreachable: git timed out or is not installed.
        """
        try:
            return await self._run(arguments, seconds, {"GIT_ALLOW_PROTOCOL": self._protocols}, descriptors)
        except NixUnusable as error:
            raise self.disclosure.unreachable(str(error)) from error
        except NixTimedOut as error:
            raise self.disclosure.unreachable(f"no answer within {seconds:g} seconds") from error

    def listed(self, output: str) -> Mapping[str, str]:
        """Parse the output of ``git ls-remote``: the commits, by the names of their references.

        git does not check the names that a server sends. One with a line break makes a line of the server's
        choice, whose commit would become an option of git, a path, or a part of a URL.

        Raises:
            SourceUnreachable: a line has no commit.
        """
        lines = [line.partition("\t") for line in lines_of(output)]
        if not all(COMMIT.fullmatch(commit) for commit, _, _ in lines):
            raise self.disclosure.unreachable("its list of branches and tags has a line without a commit")
        return {name: commit for commit, _, name in lines}

    async def local(
        self,
        *arguments: str,
        seconds: float = FETCH_TIMEOUT,
        descriptors: tuple[int, ...] = (),
        answer: int = USUAL_ANSWER,
    ) -> tuple[int, str]:
        """Run git on local objects; it contacts no server, even if an object is missing.

        Raises:
            AnswerTooLarge: its output has more bytes than ``answer``.
            StorageError: git timed out or is not installed.
        """
        try:
            return await self._run(arguments, seconds, _ALONE, descriptors, answer)
        except (NixUnusable, NixTimedOut) as error:
            raise StorageError(f"git {_command_of(arguments)} failed: {error}") from error

    async def _run(
        self,
        arguments: Sequence[str],
        seconds: float,
        variables: Mapping[str, str],
        descriptors: tuple[int, ...],
        answer: int = USUAL_ANSWER,
    ) -> tuple[int, str]:
        completed, stderr = await run_command(
            seconds,
            *("sh", "-c", _BOUNDED, "sh", str(_LARGEST_FILE // 512), str(_MOST_MEMORY // 1024)),
            *("git", *arguments),
            context=ProcessContext(
                {**self._environment, **variables}, descriptors=descriptors, answer=answer
            ),
        )
        if completed.exit_code == 0:
            return 0, completed.stdout.decode(errors="replace")
        said = [line for line in stderr if line.startswith(("fatal:", "error:"))] or list(stderr)
        return completed.exit_code, self._location.redact((said[0] if said else "").removeprefix("fatal: "))


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
            raise StorageError(f"git {_command_of(arguments)} failed: {output}")
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
            seconds=FETCH_TIMEOUT,
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
            raise StorageError(f"cannot create a git repository in the storage: {said}")


class BareRepository(_Commands):
    """A bare repository in the storage, shared by servers. One git process at a time fetches into it.

    Args:
        git: of the original repository.
        directory: of the copy; made if missing.
    """

    def __init__(self, git: Git, directory: Path) -> None:
        super().__init__(git, directory)
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[LockedRepository]:
        """Lock this copy against other coroutines and other servers; make it if missing.

        Raises:
            StorageError: it cannot be made.
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
                # A killed server may have left git's own locks, which would block git for ever.
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


def lines_of(output: str) -> Sequence[str]:
    """Return the lines of git's output, one for each reference.

    Only a line break separates them: the name of a branch may have any other separator that is not in ASCII, and
    would become the names of two.
    """
    return [line for line in output.split("\n") if line]


def _is_local(address: str) -> bool:
    is_short_ssh = re.match(r"[^/]+:", address) is not None
    return address.startswith("file://") or ("://" not in address and not is_short_ssh)


def _command_of(arguments: Sequence[str]) -> str:
    return arguments[2] if arguments[0] == "--git-dir" else arguments[0]


async def _lock(descriptor: int) -> None:
    # Polls, because a thread that blocks cannot be cancelled, and another server may fetch for minutes.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL)
        else:
            return
