"""Nix's processes, counted in ``/proc``: what there is, rather than what somebody believes to have started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROC = Path("/proc")


class NixProcesses(Collector):
    """Commands of Nix that this process runs; what they start is not counted."""

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield GaugeMetricFamily("nixery_nix_processes", "Commands of Nix that run.", value=_count())


def _count() -> int:
    """Count children by name; one that has ended meanwhile is none."""
    number = 0
    for task in (_PROC / "self" / "task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    number += (_PROC / child / "comm").read_text().startswith("nix")
    return number
