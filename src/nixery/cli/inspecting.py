"""What ``nixery inspect`` does."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from nixery.app import Components
from nixery.builds.descriptions import PACKAGES
from nixery.builds.image import ImageIndex
from nixery.cli.output import BarReporter, LineReporter
from nixery.cli.session import open_session, run
from nixery.errors import BlobUnknown
from nixery.image.name import requests_for
from nixery.image.platform import Platform
from nixery.oci.digest import Digest
from nixery.plain_text import escaped
from nixery.storage.blobs import BlobStore


@dataclass(frozen=True, slots=True)
class _Inspected:
    """An image, as far as it can be told."""

    digest: str
    annotations: dict[str, str]
    config: dict[str, Any]
    layers: list[dict[str, Any]]

    @property
    def packages(self) -> dict[str, str]:
        """Versions by name."""
        pairs = (entry.partition(" ") for entry in self.annotations.get(PACKAGES, "").split(", ") if entry)
        return {name: version for name, _, version in pairs}


def inspect(
    name: str, diff: str, tag: str, diff_tag: str, platform: Platform | None, *, as_json: bool
) -> None:
    """See ``nixery.cli.inspect.inspect``."""
    # An image that is not there is built, which may take its time.
    on_terminal = sys.stderr.isatty() and not as_json
    shown = BarReporter(transient=True) if on_terminal else LineReporter()

    async def command() -> list[_Inspected]:
        async with open_session(None, shown) as (components, resources):
            asked = [(name, tag), *([(diff, diff_tag)] if diff else [])]
            wanted = platform or resources.platforms[0]
            return [await _inspect(components, one, its_tag, wanted) for one, its_tag in asked]

    with closing(shown):
        images = run(command, quiet=as_json or on_terminal, failed=shown.failed)
    if as_json:
        document = _as_json(images[0]) if len(images) == 1 else _difference(*images)
        typer.echo(json.dumps(document, indent=2))
    elif len(images) == 1:
        _print(images[0], Console())
    else:
        _print_difference(_difference(*images), Console())


async def _inspect(components: Components, name: str, tag: str, platform: Platform) -> _Inspected:
    found = (await components.images.get(requests_for(name, (platform,)), tag)).image
    image = found.first if isinstance(found, ImageIndex) else found
    manifest = json.loads(image.manifest.content)
    config = json.loads(await _read(components.blobs, manifest["config"]["digest"]))
    layers = [
        {"digest": layer["digest"], "size": layer["size"], "packages": history["comment"].split()}
        for layer, history in zip(manifest["layers"], config["history"], strict=True)
    ]
    annotations = manifest.get("annotations", {})
    return _Inspected(str(image.manifest.descriptor.digest), annotations, config["config"], layers)


async def _read(blobs: BlobStore, digest: str) -> bytes:
    blob = await blobs.find(Digest.parse(digest))
    content = await blobs.read(blob) if blob is not None else None
    if content is None:
        raise BlobUnknown(digest)
    return content


def _as_json(image: _Inspected) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "annotations": image.annotations,
        "packages": image.packages,
        "config": image.config,
        "layers": image.layers,
        "size": sum(layer["size"] for layer in image.layers),
    }


def _difference(one: _Inspected, other: _Inspected) -> dict[str, Any]:
    before, after = one.packages, other.packages
    there = {layer["digest"] for layer in one.layers}
    pulled = [layer for layer in other.layers if layer["digest"] not in there]
    shared = [layer for layer in other.layers if layer["digest"] in there]
    return {
        "from": one.digest,
        "to": other.digest,
        "added": {name: after[name] for name in sorted(after.keys() - before.keys())},
        "removed": {name: before[name] for name in sorted(before.keys() - after.keys())},
        "changed": {
            name: {"from": before[name], "to": after[name]}
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        },
        "shared": {"layers": len(shared), "size": sum(layer["size"] for layer in shared)},
        "to pull": {"layers": len(pulled), "size": sum(layer["size"] for layer in pulled)},
    }


def _print(image: _Inspected, console: Console) -> None:
    title = escaped(image.annotations.get("org.opencontainers.image.title", ""))
    console.print(Text.assemble((title, "bold"), f"  {image.digest}"))
    for key, value in image.annotations.items():
        _print_line(f"  {key}: {value}", console)
    # What a definition does not say itself, labels say as annotations do.
    labels = dict(image.config.get("Labels", {}).items() - image.annotations.items())
    for key, value in {**image.config, "Labels": dict(sorted(labels.items()))}.items():
        if value:
            _print_line(f"  {key}: {json.dumps(value)}", console)
    table = Table("layer", "size", "packages")
    for layer in image.layers:
        table.add_row(layer["digest"][7:19], decimal(layer["size"]), _text(" ".join(layer["packages"])))
    table.add_section()
    table.add_row(f"{len(image.layers)} layers", decimal(sum(layer["size"] for layer in image.layers)), "")
    console.print(table)


def _text(text: str) -> Text:
    """Untrusted text, without rich's markup."""
    return Text(escaped(text))


def _print_line(line: str, console: Console) -> None:
    """Print text as it is: one line is one line, for whoever reads or filters it."""
    console.print(escaped(line), highlight=False, markup=False, soft_wrap=True)


def _print_difference(difference: dict[str, Any], console: Console) -> None:
    table = Table("package", "before", "after")
    for name, version in difference["removed"].items():
        table.add_row(_text(name), _text(version or "yes"), "-", style="red")
    for name, change in difference["changed"].items():
        table.add_row(_text(name), _text(change["from"]), _text(change["to"]), style="yellow")
    for name, version in difference["added"].items():
        table.add_row(_text(name), "-", _text(version or "yes"), style="green")
    console.print(table if table.row_count else "the same packages")
    for key in ("shared", "to pull"):
        console.print(f"{key}: {difference[key]['layers']} layers, {decimal(difference[key]['size'])}")
