"""Running Nix: both output streams at once, and never a process left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nixery.errors import NixUnusable

# Nix ends its builders when it is asked to stop; this many seconds it has for that.
_GRACE = 4.0

_CHUNK = 65536

# A longer line on stderr is cut: whoever writes a megabyte without a line break does not write for people.
_LONGEST_LINE = 1 << 20

LineReader = Callable[[bytes], None]


class Deadline:
    """When a process has to be finished; moved by whoever sees it make progress."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    def extend(self) -> None:
        """Give the process the full time again, from now on."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        await self._timeout.__aexit__(*exception)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that ended by itself.

    Attributes:
        exit_code: negative: the number of the signal that ended it.
        stdout: all of it.
    """

    exit_code: int
    stdout: bytes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process is given, and how much it may take.

    Attributes:
        environment: ``None`` for ours.
        memory: bytes of address space; ``None`` for as much as there is.
        descriptors: open files that it and its children keep open, a lock for example, also if we are gone.
    """

    environment: Mapping[str, str] | None = None
    memory: int | None = None
    descriptors: tuple[int, ...] = ()


OURS = Surroundings()


async def run(
    arguments: Sequence[str],
    read_stderr_line: LineReader,
    deadline: Deadline,
    surroundings: Surroundings = OURS,
) -> Completed:
    """Run a program in a process group of its own.

    However this ends (deadline, cancellation, an error here), the whole group has ended before it returns.

    Args:
        arguments: the program and its arguments; no shell is involved.
        read_stderr_line: called with each line, without its line break, while the program runs.
        deadline: when to give up.
        surroundings: of the program, and of what it starts.

    Raises:
        TimeoutError: the deadline passed.
        NixUnusable: the program cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=surroundings.environment,
            pass_fds=surroundings.descriptors,
        )
    except OSError as error:
        raise NixUnusable(
            f"cannot run {arguments[0]} ({error.strerror}); is it installed and on PATH?"
        ) from error
    if surroundings.memory is not None:
        with suppress(ProcessLookupError):
            limit = (surroundings.memory, surroundings.memory)
            resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
    if process.stdout is None or process.stderr is None:
        raise AssertionError("both streams were asked for")
    try:
        async with deadline:
            stdout, _, exit_code = await asyncio.gather(
                process.stdout.read(), _read_lines(process.stderr, read_stderr_line), process.wait()
            )
    except BaseException:
        # Also if the program itself is gone: others of its group may hold the streams open. And a second cancellation
        # must not leave the group half ended.
        await asyncio.shield(_end_group(process))
        raise
    return Completed(exit_code, stdout)


async def _read_lines(stream: asyncio.StreamReader, read_line: LineReader) -> None:
    rest = b""
    while chunk := await stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            read_line(line)
        rest = rest[:_LONGEST_LINE]
    if rest:
        read_line(rest)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    _signal_group(process, signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _GRACE)
    # Whether or not Nix itself went in time: nothing of its group may stay.
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
