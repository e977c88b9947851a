"""Renders the reference of metrics from the registry."""

from __future__ import annotations

import re

from nixery.caching import CacheCounts
from nixery.telemetry.metrics import Metrics


def render() -> str:
    """Return docs/reference/metrics.md."""
    metrics = Metrics()
    metrics.watch({"image": CacheCounts()})
    text = metrics.text().decode()
    helps = dict(re.findall(r"^# HELP (nixery_\S+) (.*)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kind} | {helps[name]} |"
        for name, kind in sorted(re.findall(r"^# TYPE (nixery_\S+) (\S+)$", text, re.MULTILINE))
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            "For operators who write queries and alerts: each metric of `/metrics`, with its kind and meaning.",
            "[Logs and traces](logs-and-traces.md#labels-of-metrics) lists the values of the labels.",
            "Generated from the code by `make docs`.",
            "",
            "| metric | kind | meaning |",
            "|---|---|---|",
            *rows,
        ]
    )
