"""Load, made by wrk."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.peers.process import Peer

PROGRAM = "wrk"

_REPORT = Path(__file__).with_name("report.lua")

# Seconds that one answer may take: a tag may have to be evaluated.
_ANSWER = 20


class BenchError(Exception):
    """What was measured is not what was meant to be."""


@dataclass(frozen=True)
class Load:
    """What is asked for, and by how many at the same time.

    Attributes:
        pause: milliseconds between an answer and the next request of a connection.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 8
    pause: int = 0


@dataclass(frozen=True)
class Measurement:
    """What came of a load, or of several.

    Attributes:
        received: bytes, with headers.
        latencies: how many requests took so many microseconds.
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
        """Return the latency in seconds that so many per cent of the requests stay within; none without requests."""
        left = self.latencies.total() * percent / 100
        for microseconds in sorted(self.latencies):
            left -= self.latencies[microseconds]
            if left <= 0:
                return microseconds / 1e6
        return None

    def __add__(self, other: Measurement) -> Measurement:
        """Put two runs together."""
        return Measurement(
            self.requests + other.requests,
            self.received + other.received,
            self.seconds + other.seconds,
            self.latencies + other.latencies,
        )


def measure(peer: Peer, load: Load, seconds: int) -> Measurement:
    """Put a load on a server for some time. wrk has one thread: there are few cores, and the servers need theirs.

    Raises:
        BenchError: it answers with errors, or closes connections.
    """
    pause = f"function delay() return {load.pause} end\n" if load.pause else ""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_REPORT.read_text() + pause)
        script.flush()
        command = [PROGRAM, "-t", "1", "-c", str(load.connections), "-d", str(seconds), "-s", script.name]
        command += ["--timeout", str(_ANSWER)]
        for name, value in load.headers.items():
            command += ["-H", f"{name}: {value}"]
        command.append(f"http://{peer.address}{load.path}")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + 2 * _ANSWER
        )
    if done.returncode != 0:
        raise BenchError(f"wrk failed with {done.returncode}: {done.stdout}{done.stderr}")
    document = json.loads(done.stdout.splitlines()[-1])
    if document["socket_errors"] or document["status_errors"]:
        raise BenchError(f"{peer.name} does not answer {load.path} as it should: {done.stdout}")
    return Measurement(
        document["requests"],
        document["bytes"],
        document["microseconds"] / 1e6,
        Counter(dict(document["latency"])),
    )
