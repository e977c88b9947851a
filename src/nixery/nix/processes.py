"""Run programs: read both output streams concurrently and within limits, and leave no process behind.

Each program runs in its own process group, which has ended when the call returns. If this process is
killed, ``nixery.nix.warden`` ends its children (``guarded``).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from nixery.errors import AnswerTooLarge, NixTimedOut, NixUnusable
from nixery.nix import warden
from nixery.nix.build_log import LOG_TAIL, plain
from nixery.nix.error_message import without_hashes_of_files

# Seconds: for Nix to end its builders after SIGTERM, and for the warden to exit.
_GRACE = 4.0
_WARDEN_TIMEOUT = 5

_CHUNK = 65536

# Longer lines on stderr are cut. And bytes of a line that `run_command` keeps: more than a log shows, to
# allow for escape sequences.
_LONGEST_LINE = 1 << 20
_LONGEST_KEPT_LINE = 16 * 1024

_STDERR = 2

# Default limit in bytes for stdout.
USUAL_ANSWER = 16 * 1024 * 1024

# Bytes of stderr that are read in a second, on average. A builder that writes faster blocks: parsing its
# lines occupies the event loop, which has other requests to serve. Parsing even a short line
# takes as long as this many bytes of a long one.
_STDERR_RATE = 4 * 1024 * 1024
_LINE_COST = 256

# The kernel's highest: out of memory, it kills Nix and its builders before any other process (proc(5)).
# Otherwise it kills the largest process, which is the server if there are many builders of moderate size.
_FIRST_TO_END = b"1000"

# Limits for the arguments of one command: paths, and bytes, well under Linux's 2 MiB for arguments and
# environment.
_PATHS, ARGUMENTS = 5000, 1024 * 1024

# The variable by which the warden finds the processes that a server has started.
MARK = "NIXERY_STARTED_BY"

# The operation's number in Linux's prctl(2).
_PR_SET_DUMPABLE = 4

_log = structlog.get_logger("nixery.nix")

LineReader = Callable[[bytes], None]


class Deadline:
    """The deadline of a process; progress extends it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    def extend(self) -> None:
        """Restart the full time from now on."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        await self._timeout.__aexit__(*exception)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of a process.

    Attributes:
        exit_code: negative if a signal ended it.
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
        descriptors: the only open files that it and its children inherit, for example a lock that outlives
            this process.
        answer: limit of stdout in bytes.
        niceness: priority of the scheduler, from 0 to 19, which is the lowest (nice(1)).
        on_start: called with the name of the program.
    """

    environment: Mapping[str, str] = field(repr=False)
    memory: int | None = None
    descriptors: tuple[int, ...] = ()
    answer: int = USUAL_ANSWER
    niceness: int = 0
    on_start: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)


async def run(
    arguments: Sequence[str],
    read_stderr_line: LineReader,
    deadline: Deadline,
    context: ProcessContext,
) -> Completed:
    """Run a program in its own process group.

    However this ends (deadline, cancellation, an error), the whole group has ended when it returns.

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
            f"cannot run {arguments[0]}: {error.strerror} (is it installed and on PATH?)"
        ) from error
    with suppress(OSError), open(f"/proc/{process.pid}/oom_score_adj", "wb", buffering=0) as score:  # noqa: ASYNC230, PTH123 -- no disk
        score.write(_FIRST_TO_END)
    context.on_start(arguments[0])
    if context.niceness:
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, context.niceness)
    if context.memory is not None:
        with suppress(ProcessLookupError):
            limit = (context.memory, context.memory)
            resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
    if process.stdout is None or process.stderr is None:
        raise AssertionError("both streams are pipes")
    answering = asyncio.ensure_future(_read_answer(process.stdout, arguments[0], context.answer))
    logging = asyncio.ensure_future(_read_lines(process.stderr, read_stderr_line))
    try:
        async with deadline:
            answer, _, exit_code = await asyncio.gather(answering, logging, process.wait())
    except BaseException:
        # Even if the program itself has ended, others of its group may hold the streams open.
        await _to_the_end(asyncio.ensure_future(_end(process, (answering, logging))))
        raise
    return Completed(exit_code, answer)


def _close_on_exec(kept: Collection[int]) -> None:
    """Make children inherit only these descriptors, even if a library or the parent process left others inheritable.

    uvloop starts processes without closing descriptors (``close_fds``), and relies on this flag.
    """
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- runs for each process
        descriptor = int(entry)
        if descriptor > _STDERR and descriptor not in kept:
            with suppress(OSError):  # the directory's own descriptor is closed already
                os.set_inheritable(descriptor, False)


async def _read_answer(stream: asyncio.StreamReader, program: str, limit: int) -> bytes:
    answer = bytearray()
    while chunk := await stream.read(_CHUNK):
        answer += chunk
        if len(answer) > limit:
            raise AnswerTooLarge(f"the output of {program}", limit)
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


async def _to_the_end(work: asyncio.Future[None]) -> None:
    """Wait for some work, however often this task is cancelled meanwhile; ``shield`` would return at once."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    work.result()
    if cancelled is not None:
        raise cancelled


async def _end(process: asyncio.subprocess.Process, readers: Collection[asyncio.Future[Any]]) -> None:
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    # asyncio considers a process as running while it has unread output, and a program blocks on a full pipe.
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
    # Even if Nix itself ended in time, others of its group may be left.
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def run_command(
    seconds: float, *arguments: str, context: ProcessContext, first: int = 0, last: int = LOG_TAIL
) -> tuple[Completed, Sequence[str]]:
    """Run a command; return its result, and the first and the last lines of its stderr.

    Args:
        seconds: the timeout.
        arguments: the program and its arguments.
        context: of the program.
        first: number of lines of the beginning.
        last: number of lines of the end.

    Raises:
        NixTimedOut: it timed out.
        AnswerTooLarge: its output exceeds the limit.
        NixUnusable: it cannot be started.
    """
    # Decoded only at the end, since most lines of a flood are never shown.
    beginning: list[bytes] = []
    end: deque[bytes] = deque(maxlen=last)

    def keep(line: bytes) -> None:
        kept = beginning if len(beginning) < first else end
        kept.append(line[:_LONGEST_KEPT_LINE])

    try:
        completed = await run(arguments, keep, Deadline(seconds), context)
    except TimeoutError:
        raise NixTimedOut(None, seconds, readable([*beginning, *end][-LOG_TAIL:])) from None
    return completed, readable([*beginning, *end])


def readable(lines: Iterable[bytes]) -> tuple[str, ...]:
    """Return lines of a program as plain text, without hashes of this machine's files."""
    return tuple(without_hashes_of_files(plain(line.decode(errors="replace"))) for line in lines)


def in_batches(paths: Sequence[str]) -> list[Sequence[str]]:
    """Split paths into lists that fit into one command."""
    return [paths[start : start + _PATHS] for start in range(0, len(paths), _PATHS)]


def hide_from_builders() -> None:
    """Close this process's environment and memory to other processes of the same user.

    A builder without a sandbox may run as the server's own user, and could read the server's credentials in
    ``/proc/<pid>/environ``. Children are not affected: the kernel resets the flag when they execute a program
    (prctl(2)). Root can still read everything.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@contextmanager
def guarded(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Start a warden, which ends all processes with this environment if this process is killed.

    Args:
        environment: has a mark while the context lasts.
    """
    mark = secrets.token_hex(16)
    environment[MARK] = mark
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__, f"{MARK}={mark}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A signal to the process group of this process must not reach it.
            start_new_session=True,
            # Without the mark, or it would end itself; and in a directory that stays mounted.
            env={},
            cwd="/",
        )
    except OSError as error:
        # For example, this user may not start the interpreter again.
        _log.warning(
            "cannot start the warden: builds would outlive this process if it were killed",
            reason=error.strerror,
        )
        process = None
    try:
        yield
    finally:
        del environment[MARK]
        if process is not None:
            _end_warden(process)


def _end_warden(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_WARDEN_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
