"""How long the server says that it took.

What clients see takes longer on a machine without a processor to spare: they wait for their own, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from scripts.soak.clients import WARM


def slowest(log: str) -> str:
    """Say how long the longest answers took, in words: those to warm pulls, and to all others."""
    found: dict[str, list[float]] = {"manifests of warm pulls": [], "other manifests": [], "blobs": []}
    for path, seconds in _answers(log):
        if "/blobs/" in path:
            kind = "blobs"
        elif any(path == f"/v2/{name}/manifests/latest" for name in WARM):
            kind = "manifests of warm pulls"
        else:
            kind = "other manifests"
        found[kind].append(seconds)
    return "; ".join(
        f"{len(seconds)} {kind}, the longest {max(seconds) * 1000:,.0f} ms"
        for kind, seconds in found.items()
        if seconds
    )


def _answers(log: str) -> Iterator[tuple[str, float]]:
    for line in log.splitlines():
        if '"event": "request"' in line:
            entry = json.loads(line)
            if entry["method"] == "GET":
                yield entry["path"], entry["seconds"]
