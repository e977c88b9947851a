"""Load on a server by wrk, and the processor time that the server spends on it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.peers.process import Peer

PROGRAM = "wrk"

_REPORT = Path(__file__).with_name("report.lua")

# Seconds for one response: a tag may have to be evaluated.
_ANSWER = 20


_TICKS = os.sysconf("SC_CLK_TCK")

# A server is idle if it uses less than this share of a core over this many seconds; how long to wait for
# that.
_IDLE_SHARE = 0.05
_IDLE_SECONDS = 0.1
_IDLE_TIMEOUT = 10.0


class BenchError(Exception):
    """A measurement failed."""


@dataclass(frozen=True)
class Load:
    """Requests for one path on several connections.

    Attributes:
        pause: milliseconds between a response and the next request of its connection.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 8
    pause: int = 0


@dataclass(frozen=True)
class Measurement:
    """The result of one load or of several.

    Attributes:
        received: bytes, headers included.
        latencies: number of requests by microseconds.
    """

    requests: int
    received: int
    seconds: float
    latencies: Counter[int]

    @property
    def requests_per_second(self) -> float:
        """The rate over the whole time."""
        return self.requests / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """The rate over the whole time."""
        return self.received / self.seconds

    def percentile(self, percent: float) -> float | None:
        """Return a percentile of the latencies in seconds; ``None`` without requests."""
        left = self.latencies.total() * percent / 100
        for microseconds in sorted(self.latencies):
            left -= self.latencies[microseconds]
            if left <= 0:
                return microseconds / 1e6
        return None

    def __add__(self, other: Measurement) -> Measurement:
        """Add up two measurements."""
        return Measurement(
            self.requests + other.requests,
            self.received + other.received,
            self.seconds + other.seconds,
            self.latencies + other.latencies,
        )


def measure(peer: Peer, load: Load, seconds: int) -> Measurement:
    """Put a load on a server for some seconds. wrk gets one thread, to leave the other cores to the server.

    Raises:
        BenchError: the server answers with errors or closes connections.
    """
    pause = f"function delay() return {load.pause} end\n" if load.pause else ""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_REPORT.read_text() + pause)
        script.flush()
        command = [PROGRAM, "-t", "1", "-c", str(load.connections), "-d", str(seconds), "-s", script.name]
        command += ["--timeout", str(_ANSWER)]
        for name, value in {**load.headers, **peer.headers}.items():
            command += ["-H", f"{name}: {value}"]
        command.append(f"http://{peer.address}{load.path}")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + 2 * _ANSWER
        )
    if done.returncode != 0:
        raise BenchError(f"wrk failed with {done.returncode}: {done.stdout}{done.stderr}")
    document = json.loads(done.stdout.splitlines()[-1])
    if document["socket_errors"] or document["status_errors"]:
        raise BenchError(f"{peer.name} answers {load.path} with errors: {done.stdout}")
    return Measurement(
        document["requests"],
        document["bytes"],
        document["microseconds"] / 1e6,
        Counter(dict(document["latency"])),
    )


def processor_seconds(process_id: int) -> float:
    """Return the processor time that a process and its living children have used, in the kernel too."""
    total = 0
    for stat in _family(process_id):
        # The program's name, in parentheses, may contain any character. After it, fields 11 and 12 are user
        # and system time; 13 and 14 are those of children that have ended.
        total += sum(int(ticks) for ticks in stat.rpartition(")")[2].split()[11:15])
    return total / _TICKS


def wait_until_idle(process_id: int) -> None:
    """Wait until a server has finished the work of the last load, for a limited time."""
    end = time.monotonic() + _IDLE_TIMEOUT
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
