"""Processor time of a server and its children, from ``/proc``."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")

# A server is idle when it uses less than this share of one core over this many seconds; and how long to wait for it.
_IDLE_SHARE = 0.05
_IDLE_SECONDS = 0.1
_PATIENCE = 10.0


def processor_seconds(process_id: int) -> float:
    """Return the processor time that a process and its living children have used, in the kernel too."""
    total = 0
    for stat in _family(process_id):
        # The name of the program, in parentheses, may hold anything. Behind it, user and system time are 11 and 12;
        # 13 and 14 are those of children that have ended.
        total += sum(int(ticks) for ticks in stat.rpartition(")")[2].split()[11:15])
    return total / _TICKS


def wait_until_idle(process_id: int) -> None:
    """Wait until a server has done what was left over from the last load; not for ever."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        before = processor_seconds(process_id)
        time.sleep(_IDLE_SECONDS)
        if processor_seconds(process_id) - before < _IDLE_SHARE * _IDLE_SECONDS:
            return


def _family(process_id: int) -> list[str]:
    stats = [_stat(process_id)]
    try:
        children = (Path("/proc") / str(process_id) / "task" / str(process_id) / "children").read_text()
    except OSError:
        children = ""
    return [stat for stat in [*stats, *(_stat(int(child)) for child in children.split())] if stat]


def _stat(process_id: int) -> str:
    try:
        return (Path("/proc") / str(process_id) / "stat").read_text(errors="replace")
    except OSError:
        return ""
