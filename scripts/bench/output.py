"""The results as tables and as JSON, and the machine that they are of."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.goals import OURS, Goal
from scripts.bench.hot_path import Figures, Results, ratios
from scripts.bench.load import Measurement
from scripts.bench.packing import Packing
from scripts.peers import docker_registry, nginx


def show(console: Console, results: Results, packing: Packing | None, reached: Sequence[Goal]) -> None:
    """Print all results as tables."""
    table = Table(title="the hot path: medians of the rounds")
    table.add_column("")
    table.add_column("unit")
    peers = list(dict.fromkeys(peer for figures in results.values() for peer in figures))
    others = [peer for peer in peers if peer != OURS]
    for peer in peers:
        table.add_column(peer, justify="right")
    for peer in others:
        table.add_column(f"of {peer}", justify="right")
    for case, figures in results.items():
        multiples = dict(ratios(figures, OURS))
        table.add_row(
            case.name,
            case.kind.value,
            *(f"{figures[peer].rate:,.0f}" if peer in figures else "-" for peer in peers),
            *(f"{multiples[peer]:.2f}" if peer in multiples else "-" for peer in others),
        )
    console.print(table)

    table = Table(title="processor time for a request or a MB, µs; p99, ms")
    table.add_column("")
    for peer in peers:
        table.add_column(f"{peer}", justify="right")
    for case, figures in results.items():
        table.add_row(
            case.name,
            *(_processor_and_late(figures.get(peer)) for peer in peers),
        )
    console.print(table)

    if packing is not None:
        _show_packing(console, packing)

    for goal in reached:
        mark = "[green]met   [/green]" if goal.is_met else "[yellow]missed[/yellow]"
        console.print(f"{mark}  {goal.name}: {goal.reached} ({goal.wanted})")


def _show_packing(console: Console, packing: Packing) -> None:
    table = Table(title="/v2/ while layers are packed, ms")
    for name in ("", "p50", "p99", "requests"):
        table.add_column(name, justify="right")
    for name, measurement in (("idle", packing.idle), ("packing", packing.busy)):
        p50, p99 = (_milliseconds(measurement.percentile(percent)) for percent in (50, 99))
        table.add_row(name, p50, p99, str(measurement.requests))
    console.print(table)


def document(results: Results, packing: Packing | None, reached: Sequence[Goal]) -> dict[str, Any]:
    """Return all results for JSON: times in seconds, rates in the unit of their case."""
    return {
        "cases": [
            {
                "name": case.name,
                "unit": case.kind.value,
                "servers": {peer: _figures(f) for peer, f in figures.items()},
                "ratios": dict(ratios(figures, OURS)),
            }
            for case, figures in results.items()
        ],
        "packing": packing and {"idle": _latencies(packing.idle), "packing": _latencies(packing.busy)},
        "goals": [
            {"name": goal.name, "wanted": goal.wanted, "reached": goal.reached, "met": goal.is_met}
            for goal in reached
        ],
    }


def description() -> dict[str, str]:
    """Describe the machine and the versions of the servers."""
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        # Of the last minute, including the set-up of the benchmark.
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nixery": version("nixery"),
        "granian": version("granian"),
        "nginx": nginx.version(),
        "docker-registry": docker_registry.version(),
    }


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "rate": figures.rate,
        "rounds": figures.rates,
        "p50": figures.median_latency,
        "p99": figures.late,
        "processor_seconds": figures.processor,
    }


def _latencies(measurement: Measurement) -> dict[str, Any]:
    return {
        "p50": measurement.percentile(50),
        "p99": measurement.percentile(99),
        "requests": measurement.requests,
    }


def _processor_and_late(figures: Figures | None) -> str:
    return "-" if figures is None else f"{figures.processor * 1e6:,.0f}; {_milliseconds(figures.late)}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.2f}"
