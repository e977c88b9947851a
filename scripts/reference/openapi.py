"""Renders the description of the API as JSON, for the server's page of it: the server has no parser of YAML."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

_DOCS = Path(__file__).parents[2] / "docs"

PATH = Path(__file__).parents[2] / "src" / "nixery" / "server" / "pages" / "openapi.json"


def render() -> str:
    """Return ``openapi.json``."""
    (description,) = _DOCS.rglob("openapi.yaml")
    return json.dumps(yaml.safe_load(description.read_text()), indent=1, ensure_ascii=False) + "\n"
