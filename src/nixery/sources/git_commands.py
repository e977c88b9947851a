"""Run git against one remote repository: with the operator's credentials, and without trusting the remote.

Errors of sources: the log gets the reason; clients get it only if the source is public.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import structlog

from nixery.errors import NixTimedOut, NixUnusable, SourceUnreachable, StorageError
from nixery.nix.processes import USUAL_ANSWER, ProcessContext, run_command
from nixery.source_location import SourceLocation

# Seconds. A shallow fetch of nixpkgs is 45 MB.
FETCH = 600
LOOK_UP = 60

# Bytes of a file that git writes: a pack, or the archive of a commit. All of nixpkgs' history is 4 GB.
_LARGEST_FILE = 16 * 1024**3

# Limit in bytes for the memory of git, without the packs that it maps. A commit can have a message of any length, or
# thousands of placeholders for it (`export-subst`), and git holds all of it. Repacking all of nixpkgs takes 2 GB.
_MOST_MEMORY = 4 * 1024**3

# Git needs none of these here, and each can make it run a program. We collect garbage ourselves, in the
# foreground.
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.alternateRefsCommand": "true",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "true",
    "transfer.bundleURI": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}

# Otherwise git maps whole packs of any size, and fails if it may not.
_FEW_MAPPINGS = {"core.packedGitWindowSize": "32m", "core.packedGitLimit": "512m"}

# A shell's argument; the secrets are in the environment alone, where other users cannot read them.
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$NIXERY_GIT_USERNAME" "$NIXERY_GIT_PASSWORD"; }; f'

# For some placeholders of `export-subst`, git archive runs gpg on the commit's signature and writes the name
# of its key into the files. The operator's keys are no part of a package set.
_NO_KEYS = {"GNUPGHOME": "/dev/null"}

# For `sh -c`: limits for it and its children, for each file that they write (blocks of 512 bytes) and for memory (blocks of
# 1024 bytes). The operator may have set a lower limit for memory already.
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
        # No user is present to type a password. English, since we search some messages for words.
        unattended = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true",
            "LC_ALL": "C",
            "GIT_SSH_COMMAND": environment.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
            "GIT_DEFAULT_REF_FORMAT": "files",
            "GIT_NO_LAZY_FETCH": "1",
        }
        settings = list(_SETTINGS.items())
        if location.username is not None:
            # For this host alone, even if the server redirects to another one.
            where = "credential.{0.scheme}://{0.netloc}".format(urlsplit(location.address))
            # If we have no password, the operator's helpers may know one for the user.
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

    async def local(
        self,
        *arguments: str,
        seconds: float = FETCH,
        descriptors: tuple[int, ...] = (),
        answer: int = USUAL_ANSWER,
    ) -> tuple[int, str]:
        """Run git on local objects; it contacts no server, even if an object is missing.

        Raises:
            AnswerTooLarge: its output has more bytes than ``answer``.
            StorageError: git timed out or is not installed.
        """
        try:
            return await self._run(
                arguments, seconds, {"GIT_ALLOW_PROTOCOL": "none", **_NO_KEYS}, descriptors, answer
            )
        except (NixUnusable, NixTimedOut) as error:
            raise StorageError(f"git {command_of(arguments)} failed: {error}") from error

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


def with_hardening(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment for a git that another program starts; git runs no hooks in it, and needs little address space."""
    return with_git_settings(environment, [*_SETTINGS.items(), *_FEW_MAPPINGS.items()])


def with_git_settings(
    environment: Mapping[str, str], settings: Sequence[tuple[str, str]]
) -> Mapping[str, str]:
    """Add settings to an environment, which hides them from other users; they override those of all files."""
    given = environment.get("GIT_CONFIG_COUNT", "0")
    start = int(given) if re.fullmatch(r"[0-9]{1,4}", given) else 0
    added = {"GIT_CONFIG_COUNT": str(start + len(settings))}
    for number, (key, value) in enumerate(settings, start):
        added |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {**environment, **added}


def _is_local(address: str) -> bool:
    is_short_ssh = re.match(r"[^/]+:", address) is not None
    return address.startswith("file://") or ("://" not in address and not is_short_ssh)


def command_of(arguments: Sequence[str]) -> str:
    """Return the name of a git command, for messages."""
    return arguments[2] if arguments[0] == "--git-dir" else arguments[0]


# Characters of a program's message; a server may have it repeat anything.
_LONGEST = 500

_log = structlog.get_logger("nixery.sources")


class Disclosure:
    """Messages about one source, without its secrets.

    Args:
        location: of the source.
    """

    def __init__(self, location: SourceLocation) -> None:
        self._location = location

    @property
    def name(self) -> str:
        """The source, in messages for clients."""
        return self._location.name

    def unreachable(self, reason: str) -> SourceUnreachable:
        """Return the error of a source that cannot be read, and log why.

        Args:
            reason: in the words of git or Nix, which may repeat a URL.
        """
        said = " ".join(self._location.redact(reason).split())[:_LONGEST] or "no reason given"
        _log.warning("package source unreachable", source=self._location.shown, reason=said)
        if self._location.is_told:
            return SourceUnreachable(f"cannot read {self.name}: {said}")
        return SourceUnreachable(f"cannot read {self.name}; the server's log has the reason")
