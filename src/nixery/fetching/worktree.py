"""What git says of a directory that somebody works in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nixery.errors import BuildTimedOut, NixUnusable
from nixery.nix.command import run_command
from nixery.nix.process import Surroundings

# Seconds. Looking through the working tree of nixpkgs takes less than one.
_PATIENCE = 30


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
    """Return the state of a file or directory in a working tree; ``None`` if it is in none, or there is no git to ask.

    Commits to other parts of a large repository do not count: they change nothing for who uses this one.
    """
    is_directory = await asyncio.to_thread(path.is_dir)
    # It may belong to somebody else, whose packages we evaluate; but none of his programs is to be run here.
    settings = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false")
    git = ("git", *settings, "-C", str(path if is_directory else path.parent))
    surroundings = Surroundings({**environment, "GIT_OPTIONAL_LOCKS": "0"})
    part = "." if is_directory else path.name

    async def ask(*arguments: str) -> str | None:
        try:
            completed, _ = await run_command(
                _PATIENCE, *git, *arguments, "--", part, surroundings=surroundings
            )
        except (NixUnusable, BuildTimedOut):
            return None
        return completed.stdout.decode(errors="replace") if completed.exit_code == 0 else None

    last, changes = await asyncio.gather(ask("log", "-1", "--format=%H %ct"), ask("status", "--porcelain"))
    if not last:
        return None
    commit, date = last.split()
    return WorktreeState(commit if changes == "" else f"{commit}-dirty", int(date))
