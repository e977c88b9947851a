"""A pulled image: an OCI layout on disk, as skopeo writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table


class PulledImage:
    """The image that an OCI layout of one image holds.

    Attributes:
        digest: of its manifest.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        index = json.loads((layout / "index.json").read_bytes())
        self.digest: str = index["manifests"][0]["digest"]

    def _document(self, digest: str) -> dict[str, Any]:
        algorithm, _, digits = digest.partition(":")
        document: dict[str, Any] = json.loads((self._layout / "blobs" / algorithm / digits).read_bytes())
        return document

    def layers(self) -> Table:
        """A row for each layer: its size as pulled, and its packages, which the config's history tells."""
        manifest = self._document(self.digest)
        history = self._document(manifest["config"]["digest"])["history"]
        sizes = [layer["size"] for layer in manifest["layers"]]
        table = Table(title=f"{len(sizes)} layers, {_mebibytes(sum(sizes))}, {self.digest[:19]}…")
        table.add_column("layer", justify="right")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("packages", overflow="fold")
        for number, (size, entry) in enumerate(zip(sizes, history, strict=True), start=1):
            table.add_row(str(number), _mebibytes(size), entry.get("comment", ""))
        return table


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
