"""Measure the first request for an image: ``python -m scripts.bench_cold``, run by ``make bench-cold``.

The store paths are realised, storage and caches are empty. A server has started and read its package set. The
benchmark measures the time between a request and its manifest without HTTP, which ``make bench`` measures.
The parts come from the events of the build. Then the same request is repeated, to the same server and to a
new one on the same storage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from nixery.app import Components, assemble
from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Grouped,
    LayersComplete,
    Realised,
    Started,
    Stored,
)
from nixery.errors import NixeryError
from nixery.image.name import requests_for
from nixery.settings import Settings
from nixery.startup import Resources, prepare
from scripts.bench.goals import Goal
from scripts.bench.output import processor

_IMAGES = ("hello", "shell", "shell/git/python3/gcc")
_ROUNDS = 5
_RESULT = Path("var/bench/cold.json")
_WIDTH = 130

# The event that ends each part. The first part is pinning and the look-up in the cache.
_PARTS: dict[type[BuildEvent], str] = {
    Started: "pinning, looking up",
    Evaluated: "evaluation",
    Realised: "realisation",
    Grouped: "grouping",
    LayersComplete: "packing",
    Stored: "storing",
}
_REST = "recording, answering"

# Before the first request.
_AHEAD = "reading the package set, at start"

# The parts besides Nix and packing, and the goal for their sum.
_OURS = ("pinning, looking up", "grouping", "storing", _REST)
_GOAL = 0.05

_AGAIN, _RESTARTED = "again", "again, after a restart"


class _Clock:
    """A ``BuildObserver`` that times the parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = 0.0

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        del build
        if type(event) in _PARTS:
            self.end(_PARTS[type(event)])

    def end(self, part: str) -> None:
        """Record the end of a part."""
        now = time.perf_counter()
        self.parts[part] = now - self.last
        self.last = now


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, float]] = {}
    try:
        with console.status("realising") as status:
            for name in _IMAGES:
                _round(name)  # fetches what is missing
                status.update(name)
                rounds = [_round(name) for _ in range(_ROUNDS)]
                results[name] = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
    except NixeryError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    goals = [_goal(name, parts) for name, parts in results.items()]
    _show(console, results, goals)
    about = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    _RESULT.write_text(json.dumps({**about, "seconds": results}, indent=2))
    console.print(f"{processor()}, load {os.getloadavg()[0]:.1f}; {_RESULT}")
    return 0


def _round(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="cold-", dir="var") as directory:
        environment = {
            **os.environ,
            "NIXERY_HOST": "127.0.0.1",
            "PORT": "1",  # unused
            "NIXERY_PKGS_PATH": "packagesets/debian",
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": directory,
            # Evaluates all packages in the background, on all cores. `make bench-index` measures it.
            "NIXERY_INDEX": "0",
            "NIX_TIMEOUT": "600",
        }
        settings = Settings.from_environment(environment)
        return asyncio.run(_measure(settings, name))


async def _measure(settings: Settings, name: str) -> dict[str, float]:
    clock = _Clock()
    # As a server: a command has no cache of images, and no index, for a package set in a directory.
    resources = prepare(settings)
    started = time.perf_counter()
    async with assemble(settings, resources, observer=clock) as components:
        await components.ahead
        ahead = time.perf_counter() - started
        clock.last = began = time.perf_counter()
        await _get(components, resources, name)
        clock.end(_REST)
        parts = {**clock.parts, "in all": clock.last - began, _AHEAD: ahead}
        clock.parts.clear()
        parts[_AGAIN] = await _get(components, resources, name)
    resources = prepare(settings)
    async with assemble(settings, resources, observer=clock) as components:
        await components.ahead
        parts[_RESTARTED] = await _get(components, resources, name)
    if clock.parts:
        raise AssertionError(f"{name} was built again: {', '.join(clock.parts)}")
    return parts


async def _get(components: Components, resources: Resources, name: str) -> float:
    began = time.perf_counter()
    await components.images.get(requests_for(name, resources.platforms), "latest")
    return time.perf_counter() - began


def _goal(name: str, parts: dict[str, float]) -> Goal:
    ours = sum(parts[part] for part in _OURS)
    return Goal(
        f"{name}, neither Nix nor packing", f"< {_GOAL * 1e3:g} ms", f"{ours * 1e3:.1f} ms", ours < _GOAL
    )


def _show(console: Console, results: dict[str, dict[str, float]], goals: list[Goal]) -> None:
    table = Table(title=f"the first request, ms; medians of {_ROUNDS}")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for part in next(iter(results.values())):
        table.add_row(part, *(f"{parts[part] * 1e3:,.1f}" for parts in results.values()))
    console.print(table)
    for goal in goals:
        mark = "[green]met   [/green]" if goal.is_met else "[yellow]missed[/yellow]"
        console.print(f"{mark}  {goal.name}: {goal.reached} ({goal.wanted})")


if __name__ == "__main__":
    sys.exit(main())
