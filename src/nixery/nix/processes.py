"""Run Nix: read both output streams concurrently and within limits, and leave no process behind.

A command of Nix whose output is an answer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nixery.errors import AnswerTooLarge, NixTimedOut, NixUnusable
from nixery.nix.build_log import LOG_TAIL, plain
from nixery.nix.error_message import without_hashes_of_files

# Nix ends its builders when it is asked to stop; this many seconds it has for that.
_GRACE = 4.0

_CHUNK = 65536

# A longer line on stderr is cut: whoever writes a megabyte without a line break does not write for people.
_LONGEST_LINE = 1 << 20

_STDERR = 2

# Limit in bytes of stdout, for commands with short answers.
USUAL_ANSWER = 16 * 1024 * 1024

# Bytes of stderr that are read in a second, on average. A builder that writes faster blocks: parsing its
# lines occupies the event loop, which has other requests to serve. However short a line is, to parse it takes
# as long as this many bytes of a long one.
_STDERR_RATE = 4 * 1024 * 1024
_LINE_COST = 256

# The kernel's highest: without any memory left, it ends Nix and its builders before any other process (proc(5)).
# Otherwise it ends the largest one, and many builders of a moderate size leave that to be the server.
_FIRST_TO_END = b"1000"

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
class ProcessContext:
    """The environment and the limits of a process.

    Attributes:
        environment: the complete one; see ``nixery.nix.environments``.
        memory: bytes of address space; ``None`` for no limit.
        descriptors: open files that it and its children inherit, for example a lock that outlives us. No
            others.
        answer: limit of stdout in bytes.
    """

    environment: Mapping[str, str] = field(repr=False)
    memory: int | None = None
    descriptors: tuple[int, ...] = ()
    answer: int = USUAL_ANSWER


async def run(
    arguments: Sequence[str],
    read_stderr_line: LineReader,
    deadline: Deadline,
    context: ProcessContext,
) -> Completed:
    """Run a program in a process group of its own.

    However this ends (deadline, cancellation, an error here), the whole group has ended when it returns.

    Args:
        arguments: the program and its arguments; no shell is involved.
        read_stderr_line: called with each line, without its line break, while the program runs.
        deadline: when to time out.
        context: of the program, and of what it starts.

    Raises:
        TimeoutError: the deadline passed.
        AnswerTooLarge: its stdout exceeds the limit.
        NixUnusable: the program cannot be started.
    """
    try:
        _close_on_exec(context.descriptors)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=context.environment,
            pass_fds=context.descriptors,
        )
    except OSError as error:
        raise NixUnusable(
            f"cannot run {arguments[0]} ({error.strerror}); is it installed and on PATH?"
        ) from error
    with suppress(OSError), open(f"/proc/{process.pid}/oom_score_adj", "wb", buffering=0) as score:  # noqa: ASYNC230, PTH123 -- no disk
        score.write(_FIRST_TO_END)
    if context.memory is not None:
        with suppress(ProcessLookupError):
            limit = (context.memory, context.memory)
            resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
    if process.stdout is None or process.stderr is None:
        raise AssertionError("both streams were asked for")
    answering = asyncio.ensure_future(_read_answer(process.stdout, arguments[0], context.answer))
    logging = asyncio.ensure_future(_read_lines(process.stderr, read_stderr_line))
    try:
        async with deadline:
            answer, _, exit_code = await asyncio.gather(answering, logging, process.wait())
    except BaseException:
        # Also if the program itself is gone: others of its group may hold the streams open. And a second cancellation
        # must not leave the group half ended.
        await asyncio.shield(_end(process, (answering, logging)))
        raise
    return Completed(exit_code, answer)


def _close_on_exec(kept: Collection[int]) -> None:
    """Make children inherit only these descriptors, even if a library or our parent left others inheritable.

    uvloop starts processes without closing descriptors (``close_fds``), and relies on this flag.
    """
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- runs for each process
        descriptor = int(entry)
        if descriptor > _STDERR and descriptor not in kept:
            with suppress(OSError):  # that of the directory is closed already
                os.set_inheritable(descriptor, False)


async def _read_answer(stream: asyncio.StreamReader, program: str, most: int) -> bytes:
    answer = bytearray()
    while chunk := await stream.read(_CHUNK):
        answer += chunk
        if len(answer) > most:
            raise AnswerTooLarge(f"the output of {program}", most)
    return bytes(answer)


async def _read_lines(stream: asyncio.StreamReader, read_line: LineReader) -> None:
    loop = asyncio.get_running_loop()
    rest = b""
    allowed, at = float(_STDERR_RATE), loop.time()
    while chunk := await stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            read_line(line)
        rest = rest[:_LONGEST_LINE]
        before, at = at, loop.time()
        cost = len(chunk) + len(lines) * _LINE_COST
        allowed = min(_STDERR_RATE, allowed + (at - before) * _STDERR_RATE) - cost
        if allowed < 0:
            await asyncio.sleep(-allowed / _STDERR_RATE)
    if rest:
        read_line(rest)


async def _end(process: asyncio.subprocess.Process, readers: Collection[asyncio.Future[Any]]) -> None:
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    # asyncio considers a process as running while it has unread output, and a full pipe keeps a program from
    # ending.
    streams = (process.stdout, process.stderr)
    draining = [asyncio.ensure_future(_drain(stream)) for stream in streams if stream is not None]
    try:
        await _end_group(process)
    finally:
        for drain in draining:
            drain.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 -- asyncio has no public way


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(_CHUNK):
        pass


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


# Limits for the arguments of one command, and their bytes, well under Linux's 2 MiB for arguments and
# environment.
_PATHS, ARGUMENTS = 5000, 1024 * 1024

# Bytes of a line that are kept: more than a log shows, to allow for escape sequences.
_COMMAND_LONGEST_LINE = 16 * 1024


async def run_command(
    seconds: float, *arguments: str, context: ProcessContext
) -> tuple[Completed, Sequence[str]]:
    """Run a command to its end; return its result, and the last lines that it wrote on stderr.

    Args:
        seconds: the timeout.
        arguments: the program and its arguments.
        context: of the program.

    Raises:
        NixTimedOut: it timed out.
        AnswerTooLarge: its output exceeds the limit.
        NixUnusable: it cannot be started.
    """
    # Decoded only at the end: most lines of a flood are never shown.
    lines: deque[bytes] = deque(maxlen=LOG_TAIL)
    try:
        completed = await run(
            arguments, lambda line: lines.append(line[:_COMMAND_LONGEST_LINE]), Deadline(seconds), context
        )
    except TimeoutError:
        raise NixTimedOut(None, seconds, _readable(lines)) from None
    return completed, _readable(lines)


def _readable(lines: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(without_hashes_of_files(plain(line.decode(errors="replace"))) for line in lines)


def in_batches(paths: Sequence[str]) -> list[Sequence[str]]:
    """Cut paths into as many as one command can be given."""
    return [paths[start : start + _PATHS] for start in range(0, len(paths), _PATHS)]
