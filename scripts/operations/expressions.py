"""The Prometheus expressions in docs/how-to/monitoring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from scripts.operations.prometheus import OPERATIONS

# Scraped every second, a server has a rate after two.
_RANGE = "10s"

_METRIC = re.compile(r"\b(?:nixery|process)_[a-z_]+\b|\bup\b")


def panels() -> Iterator[tuple[str, str]]:
    """Yield title and expression of everything that the dashboard shows, with its variables filled in."""
    dashboard = json.loads((OPERATIONS / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", _RANGE).replace("$instance", ".*")
            yield panel["title"], expression


def alerts() -> dict[str, str]:
    """Return the expressions of the alerts."""
    groups = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics in an expression."""
    return set(_METRIC.findall(expression))


def documented_metrics(document: Path) -> set[str]:
    """Return the names of nixery's metrics in a document's tables."""
    return set(re.findall(r"^\| `(nixery_[a-z_]+)", document.read_text(), re.MULTILINE))
