from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from nixery.errors import AnswerTooLarge, NixUnusable
from nixery.nix.processes import Completed, Deadline, ProcessContext, run, run_command

OURS = ProcessContext(os.environ)


def ignore(_: bytes) -> None:
    pass


async def test_both_streams_are_read_concurrently() -> None:
    # Both exceed the capacity of a pipe: reading one to its end before the other would block for ever.
    script = "import sys\nfor _ in range(200):\n sys.stderr.write('e' * 9999 + '\\n')\n sys.stdout.write('o' * 10000)"
    lines: list[bytes] = []
    completed = await run(["python3", "-c", script], lines.append, Deadline(30), OURS)
    assert (completed.exit_code, len(completed.stdout), len(lines)) == (0, 2_000_000, 200)


async def test_a_very_long_line_is_cut() -> None:
    lines: list[bytes] = []
    await run(
        ["python3", "-c", "import sys; sys.stderr.write('x' * 5_000_000)"], lines.append, Deadline(30), OURS
    )
    assert sum(map(len, lines)) <= 2 * 1024 * 1024


async def test_short_lines_count_against_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    # Pauses take no time here, so the pause that is still due accumulates.
    monkeypatch.setattr("nixery.nix.processes.asyncio.sleep", sleep)
    number = 1_000_000
    script = f"import sys; sys.stderr.write('\\n' * {number})"
    lines: list[bytes] = []
    await run(["python3", "-c", script], lines.append, Deadline(30), OURS)
    assert len(lines) == number
    # A million lines cost a minute, of which this test spent a few seconds.
    assert max(pauses) > 30


async def test_the_kernel_kills_children_before_the_server() -> None:
    # Children of the program check it, as builders are children of Nix.
    script = "until grep -qx 1000 /proc/self/oom_score_adj; do :; done"
    completed = await run(["sh", "-c", script], ignore, Deadline(10), OURS)
    assert completed.exit_code == 0


async def test_a_missing_program_is_reported() -> None:
    with pytest.raises(NixUnusable, match="no-such-nix"):
        await run(["no-such-nix"], ignore, Deadline(5), OURS)


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def has_ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # In a container, there may be no process that reaps orphans.
        if is_zombie(pid):
            return True
        await asyncio.sleep(0.05)
    return False


SPAWNS_A_CHILD = "sleep 60 & echo $! >&2; wait"


async def test_a_deadline_ends_the_whole_group() -> None:
    lines: list[bytes] = []
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", SPAWNS_A_CHILD], lines.append, Deadline(0.5), OURS)
    assert await has_ended(int(lines[0]))


async def test_a_child_that_outlives_its_parent_is_ended() -> None:
    lines: list[bytes] = []
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", "sleep 60 & echo $! >&2"], lines.append, Deadline(0.5), OURS)
    assert await has_ended(int(lines[0]))


async def spawning() -> tuple[asyncio.Task[Completed], list[bytes]]:
    """A command that is running and has a child, whose process id is the first line."""
    lines: list[bytes] = []
    started = asyncio.Event()

    def read(line: bytes) -> None:
        lines.append(line)
        started.set()

    task = asyncio.ensure_future(run(["sh", "-c", SPAWNS_A_CHILD], read, Deadline(60), OURS))
    await started.wait()
    return task, lines


async def test_cancelling_ends_the_whole_group() -> None:
    task, lines = await spawning()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await has_ended(int(lines[0]))


async def test_a_second_cancellation_does_not_leave_the_group_behind() -> None:
    # As Ctrl-C in a command with several processes: their tasks are cancelled twice.
    task, lines = await spawning()
    for _ in range(10):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    # Nothing goes on in the background.
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await has_ended(int(lines[0]))


async def test_progress_extends_a_deadline() -> None:
    # The program takes half a second more than that.
    deadline = Deadline(2.0)
    completed = await run(
        ["sh", "-c", "for i in 1 2 3 4 5; do echo >&2; sleep 0.5; done"],
        lambda _: deadline.extend(),
        deadline,
        OURS,
    )
    assert completed.exit_code == 0


async def test_an_endless_answer_is_cut_off_and_its_process_ended() -> None:
    # The output would never end; the call ends, and kills the process.
    lines: list[bytes] = []
    with pytest.raises(AnswerTooLarge, match=r"the output of sh is too large: 1\.0 MiB is the limit"):
        await run(
            ["sh", "-c", "echo $$ >&2; exec cat /dev/zero"],
            lines.append,
            Deadline(30),
            ProcessContext(os.environ, answer=1 << 20),
        )
    assert await has_ended(int(lines[0]))


async def test_an_answer_of_exactly_the_limit_is_read() -> None:
    context = ProcessContext(os.environ, answer=100_000)
    completed = await run(["head", "-c", "100000", "/dev/zero"], ignore, Deadline(30), context)
    assert len(completed.stdout) == 100_000


async def test_a_flood_of_lines_is_read_at_a_limited_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await really(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    size = 32 * 1024 * 1024
    await run(["sh", "-c", f"yes | head -c {size} >&2"], ignore, Deadline(30), OURS)
    # It had to wait for everything beyond the first second's share.
    assert sum(waited) >= 1
    waited.clear()
    await run(["sh", "-c", f"yes {'x' * 99} | head -c 1000000 >&2"], ignore, Deadline(30), OURS)
    assert not waited


# Prints the open descriptors, except that of the directory that it reads.
PRINTS_ITS_DESCRIPTORS = """
import json, os
with os.scandir("/proc/self/fd") as entries:
    there = {os.readlink(entry.path) for entry in entries}
# uvloop gives its own streams to it twice.
streams = {os.readlink(f"/proc/self/fd/{number}") for number in range(3)}
there = [place for place in there - streams if not place.startswith("/proc/")]
print(json.dumps([there, dict(os.environ)]))
"""


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run])
def test_a_child_inherits_only_the_given_descriptors(
    run_loop: Callable[..., tuple[Completed, Sequence[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "secret")
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)  # as a library may open it
    given, other = os.pipe()
    try:
        context = ProcessContext({"THEIRS": "1"}, descriptors=(given,))
        command = [sys.executable, "-I", "-c", PRINTS_ITS_DESCRIPTORS]
        completed, _ = run_loop(run_command(30, *command, context=context))
        there, environment = json.loads(completed.stdout)
        assert there == [str(Path(f"/proc/self/fd/{given}").readlink())]
        environment.pop("LC_CTYPE", None)  # Python's own (PEP 538)
        assert environment == {"THEIRS": "1"}
    finally:
        for descriptor in (leaked, given, other):
            os.close(descriptor)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_unread_output_leaves_no_pipe_open(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def flooded() -> int:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(3):
            with pytest.raises(AnswerTooLarge):
                await run(
                    ["cat", "/dev/zero"],
                    ignore,
                    Deadline(30),
                    ProcessContext(dict(os.environ), answer=1 << 20),
                )
        await asyncio.sleep(0)
        gc.collect()  # warns about unclosed descriptors, which fails this test
        return len(os.listdir("/proc/self/fd")) - before  # noqa: PTH208

    with asyncio.Runner(loop_factory=loop) as runner:
        # The first child of a process may make the loop open descriptors permanently.
        runner.run(flooded())
        assert runner.run(flooded()) == 0


pytestmark = pytest.mark.security

_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()

# Root becomes another user after all imports, since that user may have no access to this checkout. Changing
# the user hides a process as well, so the flag is set again.
_HIDE = """
import ctypes, os, sys
from nixery.nix.processes import hide_from_builders
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
if sys.argv[1] == "hide":
    hide_from_builders()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("hidden", [True, False])
def test_hiding_closes_the_environment_to_processes_of_the_same_user(*, hidden: bool) -> None:
    as_server = subprocess.Popen(
        [sys.executable, "-c", _HIDE, "hide" if hidden else "show"],
        env={**os.environ, "SECRET": "of the server"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with as_server as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        as_builder = [*_NOBODY, "cat", f"/proc/{server.pid}/environ"]
        read = subprocess.run(as_builder, capture_output=True, timeout=60, check=False)
        server.communicate(timeout=60)
    assert (b"SECRET=of the server" in read.stdout) is not hidden
