"""Measure packing: ``python -m scripts.bench_pack [PACKAGE...]``, run by ``make bench-pack`` for its default packages.

Each closure is packed in threads, in processes and from NARs, the same bytes are compressed and digested from memory
(the bound), tar, gzip and sha256sum do the same in a pipe, and tar alone reads the files. The measurements
alternate. A missed goal is reported but is no failure.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from scripts.bench.goals import Goal
from scripts.bench.output import processor
from scripts.bench_pack.closures import BenchError, Subject, realise
from scripts.bench_pack.worker import Job, Outcome

# Few large files; 60,000 small files and as many symlinks. Of several names, the first in the package set
# counts: releases of Debian differ in versions.
LARGE = ("libllvm14", "libllvm19")
SMALL = ("papirus-icon-theme",)
_CLOSURES = (
    ("git",),
    ("python3",),
    ("gcc",),
    ("openjdk-17-jdk-headless", "openjdk-21-jdk-headless"),
    LARGE,
    SMALL,
)
_WORKERS = 2
_ROUNDS = 3
_RESULT = Path("var/bench/packing.json")
_WIDTH = 160

_LEVELS: tuple[tuple[Literal["gzip", "zstd"], tuple[int, ...]], ...] = (
    ("gzip", (0, 1, 2, 3)),
    ("zstd", (1, 2, 3, 4, 5, 6, 7, 9, 12)),
)
_LEVELS_OF = "gcc"

# Bytes to pack for the measurement of memory, and the goal for it, in bytes.
_MEMORY_BYTES = 2_000_000_000
_MEMORY_GOAL = 150_000_000

_TIMEOUT = 600.0

_PIPE = """set -o pipefail
tar -C / -cf - --files-from - | tee >(sha256sum >/dev/null) | gzip -6 | sha256sum >/dev/null"""

# The cost of reading alone: for /dev/null itself, tar would not even open the files.
_READING = "set -o pipefail; tar -C / -cf - --files-from - | cat >/dev/null"


@dataclass
class Figures:
    """The results of one closure; rates are medians in MB/s of uncompressed bytes."""

    size: int = 0
    files: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, outcome: Outcome) -> None:
        """Record a measurement."""
        self.seconds.setdefault(what, []).append(outcome.seconds)
        self.processor.setdefault(what, []).append(outcome.processor)
        self.resident[what] = max(self.resident.get(what, 0), outcome.resident)
        self.size = self.size or outcome.uncompressed

    def rate(self, what: str) -> float:
        """Return the median rate in MB/s."""
        return self.size / 1e6 / statistics.median(self.seconds[what])

    def cores(self, what: str) -> float:
        """Return the median number of busy cores."""
        return statistics.median(p / s for p, s in zip(self.processor[what], self.seconds[what], strict=True))

    def ratio(self, what: str, to: str) -> float:
        """Return the median ratio of speeds in the same round."""
        return statistics.median(b / a for a, b in zip(self.seconds[what], self.seconds[to], strict=True))

    def work(self, what: str, to: str) -> float:
        """Return the median ratio of processor times, which depends less on other processes."""
        return statistics.median(b / a for a, b in zip(self.processor[what], self.processor[to], strict=True))


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    try:
        with console.status("realising") as status:
            subjects = [realise(*names) for names in [(name,) for name in sys.argv[1:]] or _CLOSURES]
            figures: dict[str, Figures] = {}
            for subject in subjects:
                status.update(subject.name)
                figures[subject.name] = _compare(subject)
            status.update("2 GB")
            resident = _much(subjects)
            status.update("levels")
            levels = [
                level for subject in subjects if subject.name == _LEVELS_OF for level in _levels(subject)
            ]
    except (BenchError, subprocess.SubprocessError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    goals = list(_goals(figures, resident))
    _show(console, figures, levels, goals)
    document = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "closures": {name: asdict(f) for name, f in figures.items()},
        "resident": resident,
        "levels": levels,
        "goals": [asdict(goal) for goal in goals],
    }
    _RESULT.write_text(json.dumps(document, indent=2))
    console.print(f"{processor()}, load {os.getloadavg()[0]:.1f}; {_RESULT}")
    return 0


def _run(job: Job) -> Outcome:
    done = subprocess.run(
        (sys.executable, "-m", "scripts.bench_pack.worker"),
        input=json.dumps(asdict(job)),
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    return Outcome(**json.loads(done.stdout))


def _compare(subject: Subject) -> Figures:
    figures = Figures(files=subject.files)
    _run(Job("threads", subject.layers, _WORKERS))  # puts the files into the page cache
    for _ in range(_ROUNDS):
        memory = _run(Job("memory", subject.layers, _WORKERS))
        threads = _run(Job("threads", subject.layers, _WORKERS))
        processes = _run(Job("processes", subject.layers, _WORKERS))
        nars = _run(Job("nars", subject.layers, _WORKERS))
        if not memory.digest == threads.digest == processes.digest == nars.digest:
            raise BenchError(f"{subject.name}: the ways of packing differ in their bytes")
        figures.add("bound", memory)
        figures.add("threads", threads)
        figures.add("processes", processes)
        figures.add("nars", nars)
        figures.add("pipe", _script(_PIPE, subject))
        figures.add("reading", _script(_READING, subject))
    return figures


def _script(script: str, subject: Subject) -> Outcome:
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        ("bash", "-c", script), input="\n".join(subject.paths), text=True, timeout=_TIMEOUT, check=True
    )
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Outcome(seconds, used, 0, 0, 0, "")


def _much(subjects: list[Subject]) -> int:
    """Return the resident memory for packing two gigabytes: all closures repeatedly."""
    layers: list[list[str]] = []
    sizes = {s.name: _run(Job("memory", s.layers, _WORKERS)).uncompressed for s in subjects}
    while len(layers) < sum(len(s.layers) for s in subjects) * (_MEMORY_BYTES / sum(sizes.values())):
        layers += [layer for subject in subjects for layer in subject.layers]
    return _run(Job("threads", layers, _WORKERS)).resident


def _levels(subject: Subject) -> Iterator[tuple[str, int, float, float]]:
    """Yield name, level, MB/s of one core, and compressed size as a share."""
    for name, levels in _LEVELS:
        for level in levels:
            outcome = _run(Job("memory", subject.layers, 1, name, level))
            rate = outcome.uncompressed / 1e6 / outcome.processor
            yield name, level, rate, outcome.compressed / outcome.uncompressed


def _goals(figures: dict[str, Figures], resident: int) -> Iterator[Goal]:
    wanted_of = {**dict.fromkeys(LARGE, 0.85), **dict.fromkeys(SMALL, 0.6)}
    for name in filter(figures.__contains__, wanted_of):
        wanted = wanted_of[name]
        ratio = figures[name].ratio("threads", "bound")
        yield Goal(f"{name}, as a share of the bound", f"≥ {wanted:g}", f"{ratio:.2f}", ratio >= wanted)
        if name in SMALL:
            ratio = figures[name].ratio("nars", "bound")
            yield Goal(f"{name} from NARs, likewise", f"≥ {wanted:g}", f"{ratio:.2f}", ratio >= wanted)
    for name, each in figures.items():
        ratio = each.ratio("threads", "pipe")
        yield Goal(f"{name}, as a multiple of the pipe", "≥ 7", f"{ratio:.1f}", ratio >= 7)  # noqa: PLR2004
    yield Goal(
        "resident memory for 2 GB",
        f"< {_MEMORY_GOAL / 1e6:g} MB",
        f"{resident / 1e6:.0f} MB",
        resident < _MEMORY_GOAL,
    )


def _show(
    console: Console,
    figures: dict[str, Figures],
    levels: list[tuple[str, int, float, float]],
    goals: list[Goal],
) -> None:
    table = Table(title=f"packing with {_WORKERS} workers, MB/s (cores, MB resident)")
    ways = ("threads", "processes", "nars", "bound", "reading", "pipe")
    for column in (
        "",
        "MB",
        "files",
        *ways,
        "of bound",
        "nars of bound",
        "its work",
        "of reading",
        "of pipe",
    ):
        table.add_column(column, justify="right")
    for name, each in figures.items():
        table.add_row(
            name,
            f"{each.size / 1e6:.0f}",
            f"{each.files:,}",
            *(f"{each.rate(w):.0f} ({each.cores(w):.1f}, {each.resident[w] / 1e6:.0f})" for w in ways),
            f"{each.ratio('threads', 'bound'):.2f}",
            f"{each.ratio('nars', 'bound'):.2f}",
            f"{each.work('threads', 'bound'):.2f}",
            f"{each.ratio('threads', 'reading'):.2f}",
            f"{each.ratio('threads', 'pipe'):.1f}",
        )
    console.print(table)
    if levels:
        _show_levels(console, levels)
    for goal in goals:
        mark = "[green]met   [/green]" if goal.is_met else "[yellow]missed[/yellow]"
        console.print(f"{mark}  {goal.name}: {goal.reached} ({goal.wanted})")


def _show_levels(console: Console, levels: list[tuple[str, int, float, float]]) -> None:
    table = Table(title=f"levels, for {_LEVELS_OF}, from memory, on one core")
    for column in ("", "level", "MB/s", "size left"):
        table.add_column(column, justify="right")
    for name, level, rate, left in levels:
        table.add_row(name, str(level), f"{rate:.0f}", f"{left:.3f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
