import asyncio
import os
import time
from pathlib import Path

import pytest

from nixery.errors import NixUnusable
from nixery.nix.process import Deadline, Surroundings, run

OURS = Surroundings(os.environ)


def ignore(_: bytes) -> None:
    pass


async def test_reads_both_streams_at_once() -> None:
    # Each is far beyond what a pipe holds: whoever reads one to its end before the other waits for ever.
    script = "import sys\nfor _ in range(200):\n sys.stderr.write('e' * 9999 + '\\n')\n sys.stdout.write('o' * 10000)"
    lines: list[bytes] = []
    completed = await run(["python3", "-c", script], lines.append, Deadline(30), OURS)
    assert (completed.exit_code, len(completed.stdout), len(lines)) == (0, 2_000_000, 200)


async def test_one_very_long_line_is_bounded() -> None:
    lines: list[bytes] = []
    await run(
        ["python3", "-c", "import sys; sys.stderr.write('x' * 5_000_000)"], lines.append, Deadline(30), OURS
    )
    assert sum(map(len, lines)) <= 2 * 1024 * 1024


async def test_a_missing_program_is_said() -> None:
    with pytest.raises(NixUnusable, match="no-such-nix"):
        await run(["no-such-nix"], ignore, Deadline(5), OURS)


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # Somebody has to reap an orphan; in a container that may be nobody.
        if is_zombie(pid):
            return True
        await asyncio.sleep(0.05)
    return False


SPAWNS_A_CHILD = "sleep 60 & echo $! >&2; wait"


async def test_a_deadline_ends_the_whole_group() -> None:
    lines: list[bytes] = []
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", SPAWNS_A_CHILD], lines.append, Deadline(0.5), OURS)
    assert await gone(int(lines[0]))


async def test_a_child_that_outlives_its_parent_is_ended_too() -> None:
    lines: list[bytes] = []
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", "sleep 60 & echo $! >&2"], lines.append, Deadline(0.5), OURS)
    assert await gone(int(lines[0]))


async def test_cancelling_ends_the_whole_group() -> None:
    lines: list[bytes] = []
    started = asyncio.Event()

    def read(line: bytes) -> None:
        lines.append(line)
        started.set()

    task = asyncio.ensure_future(run(["sh", "-c", SPAWNS_A_CHILD], read, Deadline(60), OURS))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(int(lines[0]))


async def test_a_deadline_moves_while_there_is_progress() -> None:
    deadline = Deadline(1.0)
    begin = time.monotonic()
    completed = await run(
        ["sh", "-c", "for i in 1 2 3 4; do echo >&2; sleep 0.5; done"],
        lambda _: deadline.extend(),
        deadline,
        OURS,
    )
    assert completed.exit_code == 0
    assert time.monotonic() - begin > deadline.seconds
