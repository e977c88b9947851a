"""A command of Nix whose output is an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nixery.errors import BuildTimedOut
from nixery.nix.build_log import LOG_TAIL, plain
from nixery.nix.error_message import without_hashes_of_files
from nixery.nix.process import OURS, Completed, Deadline, Surroundings, run

# Arguments of one command, well under Linux's limit of 2 MiB for all of them together.
_PATHS = 5000


async def run_command(
    seconds: float, *arguments: str, surroundings: Surroundings = OURS
) -> tuple[Completed, Sequence[str]]:
    """Run a command to its end; return what became of it, and the last lines it wrote on stderr.

    Args:
        seconds: until it has to have ended.
        arguments: the program and its arguments.
        surroundings: of the program.

    Raises:
        BuildTimedOut: it did not end in time.
        NixUnusable: it cannot be started.
    """
    stderr: deque[str] = deque(maxlen=LOG_TAIL)
    try:
        completed = await run(
            arguments,
            lambda line: stderr.append(without_hashes_of_files(plain(line.decode(errors="replace")))),
            Deadline(seconds),
            surroundings,
        )
    except TimeoutError:
        raise BuildTimedOut(None, seconds, tuple(stderr)) from None
    return completed, tuple(stderr)


def in_batches(paths: Sequence[str]) -> list[Sequence[str]]:
    """Cut paths into as many as one command can be given."""
    return [paths[start : start + _PATHS] for start in range(0, len(paths), _PATHS)]
