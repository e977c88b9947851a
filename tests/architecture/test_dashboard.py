"""The dashboard follows Grafana's published schema: Grafana would silently ignore unknown fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

_DASHBOARD = Path(__file__).parents[2] / "docs" / "how-to" / "monitoring" / "dashboard.json"


def _unknown(document: dict[str, Any]) -> list[str]:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    return list(_lost(document, read, ""))


def _lost(ours: Any, read: Any, at: str) -> Iterator[str]:  # noqa: ANN401 -- JSON is anything
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            yield from _lost(value, read[key], f"{at}/{key}") if key in read else [f"{at}/{key}"]
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for index, (one, other) in enumerate(zip(ours, read, strict=True)):
            yield from _lost(one, other, f"{at}/{index}")
    elif ours != read:
        yield at


def test_grafanas_schema_knows_every_field() -> None:
    document = json.loads(_DASHBOARD.read_text())
    assert len(document["panels"]) > 10
    assert _unknown(document) == []


def test_a_misspelt_field_is_found() -> None:
    document = json.loads(_DASHBOARD.read_text())
    (panel, *_) = (panel for panel in document["panels"] if panel.get("targets"))
    panel["fieldConfig"]["defaults"]["units"] = "bytes"
    panel["targets"][0]["expresion"] = "1"
    assert len(_unknown(document)) == 2
