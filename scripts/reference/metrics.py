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
    return "\n".join(["| metric | kind | meaning |", "|---|---|---|", *rows])
