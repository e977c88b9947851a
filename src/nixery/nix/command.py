"""A command of Nix whose output is an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from nixery.errors import BuildTimedOut
from nixery.nix.build_log import LOG_TAIL, plain
from nixery.nix.error_message import without_hashes_of_files
from nixery.nix.process import Completed, Deadline, Surroundings, run

# Limits for the arguments of one command, and their bytes, well under Linux's 2 MiB for arguments and
# environment.
_PATHS, ARGUMENTS = 5000, 1024 * 1024

# Bytes of a line that are kept: more than a log shows, to allow for escape sequences.
_LONGEST_LINE = 16 * 1024


async def run_command(
    seconds: float, *arguments: str, surroundings: Surroundings
) -> tuple[Completed, Sequence[str]]:
    """Run a command to its end; return its result, and the last lines that it wrote on stderr.

    Args:
        seconds: the timeout.
        arguments: the program and its arguments.
        surroundings: of the program.

    Raises:
        BuildTimedOut: it timed out.
        AnswerTooLarge: its output exceeds the limit.
        NixUnusable: it cannot be started.
    """
    # Decoded only at the end: most lines of a flood are never shown.
    lines: deque[bytes] = deque(maxlen=LOG_TAIL)
    try:
        completed = await run(
            arguments, lambda line: lines.append(line[:_LONGEST_LINE]), Deadline(seconds), surroundings
        )
    except TimeoutError:
        raise BuildTimedOut(None, seconds, _readable(lines)) from None
    return completed, _readable(lines)


def _readable(lines: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(without_hashes_of_files(plain(line.decode(errors="replace"))) for line in lines)


def in_batches(paths: Sequence[str]) -> list[Sequence[str]]:
    """Cut paths into as many as one command can be given."""
    return [paths[start : start + _PATHS] for start in range(0, len(paths), _PATHS)]
