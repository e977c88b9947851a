"""Renders the reference of routes from the OpenAPI document, which a test holds to the code."""

from __future__ import annotations

from pathlib import Path

import yaml

_DOCS = Path(__file__).parents[2] / "docs"


def render() -> str:
    """Return docs/reference/routes.md."""
    (description,) = _DOCS.rglob("openapi.yaml")
    paths = yaml.safe_load(description.read_text())["paths"]
    rows = []
    for path, methods in paths.items():
        for method, operation in methods.items():
            if method not in {"get", "post"} or list(operation["responses"]) == ["405"]:
                continue
            statuses = ", ".join(sorted(operation["responses"]))
            rows.append(f"| `{method.upper()} {path}` | {operation['summary']} | {statuses} |")
    return "\n".join(
        [
            "# Routes",
            "",
            "For authors of clients: each route of the server with the statuses of its answers. HEAD answers like",
            "GET, without the body. [openapi.yaml](openapi.yaml) has parameters, header fields and schemas.",
            "Generated from the code by `make docs`.",
            "",
            "| route | answer | statuses |",
            "|---|---|---|",
            *rows,
        ]
    )
