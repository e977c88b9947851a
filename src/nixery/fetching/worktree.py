"""What git says of a directory that somebody works in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixery.errors import BuildTimedOut, NixUnusable
from nixery.fetching.git_command import with_git_settings
from nixery.fetching.git_repository import commit_date
from nixery.nix.command import run_command
from nixery.nix.process import Surroundings

# Seconds. Looking through the working tree of nixpkgs takes less than one.
_PATIENCE = 30

# The directory may belong to another user, whose packages we evaluate; but no program in its git
# configuration may run here.
_SETTINGS = (
    ("safe.directory", "*"),
    ("safe.bareRepository", "explicit"),
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.sshCommand", "false"),
    ("log.showSignature", "false"),
    ("diff.external", ""),
    ("diff.ignoreSubmodules", "all"),
    ("status.submoduleSummary", "false"),
    ("submodule.recurse", "false"),
)

# Filters change the content of files; a repository's own configuration defines them.
_FILTER = re.compile(r"(filter\..*)\.(?:clean|smudge|process|required)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WorktreeState:
    """The state of a part of a working tree.

    Attributes:
        revision: the last commit that changed anything in it, with ``-dirty`` if there are changes since.
        created: the date of that commit, in seconds since the epoch.
    """

    revision: str
    created: int


async def worktree_state(path: Path, environment: Mapping[str, str]) -> WorktreeState | None:
    """Return the state of a file or directory in a working tree; ``None`` outside of one, or without git.

    Commits to other parts of a large repository do not count: they do not change this part.

    Args:
        path: of the file or directory.
        environment: of git.
    """
    is_directory = await asyncio.to_thread(path.is_dir)
    directory = path if is_directory else path.parent
    part = "." if is_directory else path.name
    # Writes nothing, and fetches no missing objects.
    alone = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
    environment = with_git_settings({**environment, **alone}, _SETTINGS)
    names = await _ask(directory, environment, "config", "--list", "--name-only", "-z")
    if names is None:
        return None
    filters = dict.fromkeys(match[1] for name in names.split("\0") if (match := _FILTER.fullmatch(name)))
    unfiltered = [
        (f"{driver}.{key}", value)
        for driver in filters
        for key, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
    ]
    environment = with_git_settings(environment, unfiltered)
    last, changes = await asyncio.gather(
        _ask(directory, environment, "log", "-1", "--format=%H %ct", "--", part),
        _ask(directory, environment, "status", "--porcelain", "--ignore-submodules=all", "--", part),
    )
    if not last:
        return None
    commit = last.split()[0]
    date = commit_date(last.removeprefix(commit))
    return WorktreeState(commit if changes == "" else f"{commit}-dirty", date)


async def _ask(directory: Path, environment: Mapping[str, str], *arguments: str) -> str | None:
    command: Sequence[str] = ("git", "-C", str(directory), *arguments)
    try:
        completed, _ = await run_command(_PATIENCE, *command, surroundings=Surroundings(environment))
    except (NixUnusable, BuildTimedOut):
        return None
    return completed.stdout.decode(errors="surrogateescape") if completed.exit_code == 0 else None
