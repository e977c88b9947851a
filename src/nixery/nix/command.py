"""A command of Nix whose output is an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nixery.errors import BuildTimedOut
from nixery.nix.build_log import LOG_TAIL, plain
from nixery.nix.process import OURS, Completed, Deadline, Surroundings, run


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
            lambda line: stderr.append(plain(line.decode(errors="replace"))),
            Deadline(seconds),
            surroundings,
        )
    except TimeoutError:
        raise BuildTimedOut(None, seconds, tuple(stderr)) from None
    return completed, tuple(stderr)
