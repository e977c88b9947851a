"""``nixery inspect``."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nixery.cli.build import split_name
from nixery.cli.completion import complete_name, complete_platform
from nixery.errors import BlobUnknown
from nixery.image.platform import Platform
from nixery.plain_text import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nixery.app import Components
    from nixery.builds.image_closure import Explanation, ImageClosure
    from nixery.storage.blobs import BlobStore


# Store paths that are listed; --json has all.
_PATHS = 8


@dataclass(frozen=True, slots=True)
class _Inspected:
    """An image, from its manifest and its config.

    Attributes:
        closure: its store paths; ``None`` if their record is missing.
    """

    digest: str
    annotations: dict[str, str]
    config: dict[str, Any]
    layers: list[dict[str, Any]]
    closure: ImageClosure | None

    @property
    def packages(self) -> dict[str, str]:
        """Versions by name."""
        from nixery.builds.image import PACKAGES

        pairs = (entry.partition(" ") for entry in self.annotations.get(PACKAGES, "").split(", ") if entry)
        return {name: version for name, _, version in pairs}

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer["size"] for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "annotations": self.annotations,
            "packages": self.packages,
            "config": self.config,
            "layers": self.layers,
            "size": self.size,
            "uncompressed size": self.closure.size if self.closure else None,
            "only for": [
                {"name": name, "version": version, "size": size, "from": component}
                for (component, name, version), size in self.needed_alone
            ],
            "store paths": [
                {"path": path.path, "size": path.size, "layer": path.layer}
                for path in (self.closure.largest(len(self.closure.paths)) if self.closure else ())
            ],
        }

    @property
    def needed_alone(self) -> list[tuple[tuple[str, str, str], int]]:
        """Component, name and version of each package, with the bytes that only it needs, the largest first."""
        found = self.closure.needed_alone() if self.closure else {}
        return sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))


def inspect(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            autocompletion=complete_name,
            help="An image, e.g. shell/git; built first if it is not stored.",
        ),
    ],
    diff: Annotated[
        str,
        typer.Option(
            metavar="OTHER[:TAG]",
            autocompletion=complete_name,
            help="Print the changes from NAME to this image instead.",
        ),
    ] = "",
    tag: Annotated[str, typer.Option(help="Tag of the package source; default: latest.")] = "",
    diff_tag: Annotated[str, typer.Option(help="Tag for the other image; default: that of --tag.")] = "",
    platform: Annotated[
        Platform | None,
        typer.Option(
            parser=Platform.parse,
            metavar="OS/ARCH",
            autocompletion=complete_platform,
            help="Platform; default: the first of NIXERY_PLATFORMS.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print the layers, too, the largest first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what is in an image, what makes it large, and its config; or what changes from it to another image.

    Example: nixery inspect shell/git --diff shell/jq
    """
    name, tag = split_name(name, tag)
    other, diff_tag = split_name(diff, diff_tag)
    tag = tag or "latest"
    wanted = [(name, tag), *([(other, diff_tag or tag)] if other else [])]

    from rich.console import Console

    from nixery.cli.output import BarReporter, LineReporter
    from nixery.cli.session import open_session, run

    # An image that is not stored is built, which may take minutes.
    on_terminal = sys.stderr.isatty() and not as_json
    shown = BarReporter(transient=True) if on_terminal else LineReporter()

    async def command() -> list[_Inspected]:
        async with open_session(None, shown) as (components, resources):
            chosen = platform or resources.platforms[0]
            return [await _inspect(components, one, its_tag, chosen) for one, its_tag in wanted]

    with closing(shown):
        images = run(command, quiet=as_json or on_terminal, failed=shown.failed)
    if as_json:
        document = images[0].as_json() if len(images) == 1 else _difference(*images)
        typer.echo(json.dumps(document, indent=2))
    elif len(images) == 1:
        _print(images[0], Console(), layers=layers)
    else:
        _print_difference(_difference(*images), Console())


async def _inspect(components: Components, name: str, tag: str, platform: Platform) -> _Inspected:
    from nixery.builds.image import ImageIndex
    from nixery.image.name import requests_for

    found = (await components.images.get(requests_for(name, (platform,)), tag)).image
    image = found.first if isinstance(found, ImageIndex) else found
    manifest = json.loads(image.manifest.content)
    config = json.loads(await _read(components.blobs, manifest["config"]["digest"]))
    layers = [
        {"digest": layer["digest"], "size": layer["size"], "packages": history["comment"].split()}
        for layer, history in zip(manifest["layers"], config["history"], strict=True)
    ]
    annotations = manifest.get("annotations", {})
    digest = image.manifest.descriptor.digest
    closure = await components.closures.find(digest)
    return _Inspected(str(digest), annotations, config["config"], layers, closure)


async def _read(blobs: BlobStore, digest: str) -> bytes:
    from nixery.oci.digest import Digest

    blob = await blobs.find(Digest.parse(digest))
    content = await blobs.read(blob) if blob is not None else None
    if content is None:
        raise BlobUnknown(digest)
    return content


def _difference(one: _Inspected, other: _Inspected) -> dict[str, Any]:
    before, after = one.packages, other.packages
    present = {layer["digest"] for layer in one.layers}
    pulled = [layer for layer in other.layers if layer["digest"] not in present]
    shared = [layer for layer in other.layers if layer["digest"] in present]
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


def _print(image: _Inspected, console: Console, *, layers: bool) -> None:
    from rich.filesize import decimal
    from rich.text import Text

    title = escaped(image.annotations.get("org.opencontainers.image.title", ""))
    # A digest that is broken at the edge of a table cannot be copied.
    console.print(Text.assemble((title, "bold"), f"  {image.digest}"), soft_wrap=True)
    if image.closure is not None:
        console.print(f"{decimal(image.size)} to download, {decimal(image.closure.size)} uncompressed")
        _print_packages(image, console)
        _print_paths(image.closure, console)
    for key, value in image.annotations.items():
        _print_line(f"  {key}: {value}", console)
    # Annotations are labels, too: print only the other ones.
    labels = dict(image.config.get("Labels", {}).items() - image.annotations.items())
    for key, value in {**image.config, "Labels": dict(sorted(labels.items()))}.items():
        if value:
            _print_line(f"  {key}: {json.dumps(value)}", console)
    total = f"{len(image.layers)} layers, {decimal(image.size)} compressed"
    if layers:
        _print_layers(image, console)
    console.print(total if layers else f"{total}; --layers lists them")


def _print_packages(image: _Inspected, console: Console) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from nixery.image.meta_packages import SHELL
    from nixery.image.name import ALWAYS_INCLUDED

    table = Table("package", "version", "only for it", "")
    table.columns[2].justify = "right"
    _fold(table)
    for (component, name, version), size in image.needed_alone:
        why = "shell" if component == SHELL else "in every image" if component in ALWAYS_INCLUDED else ""
        table.add_row(_text(name or "by path"), _text(version), decimal(size), why)
    console.print(table)
    console.print(
        "only for it: what the image would lose without the package, uncompressed; packages share the rest"
    )


def _print_paths(closure: ImageClosure, console: Console) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("largest store paths", "size", "needed by")
    table.columns[1].justify = "right"
    _fold(table)
    for path in closure.largest(_PATHS):
        found = closure.explain(path.path)
        table.add_row(_text(path.name), decimal(path.size), _text(_needed_by(found)))
    console.print(table)


def _fold(table: Table) -> None:
    """Fold names on a narrow terminal. Two names that are cut may look alike."""
    for column in table.columns:
        column.overflow = "fold"


def _needed_by(found: Explanation | None) -> str:
    """Name the first package that needs a store path, and count the others."""
    if found is None or not found.chains:
        return ""
    root = found.chains[0].root
    more = found.needed_by - 1
    return (root.name or "the image") + (f" and {more} more" if more else "")


def _print_layers(image: _Inspected, console: Console) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("layer", "size", "packages")
    table.columns[1].justify = "right"
    _fold(table)
    for layer in sorted(image.layers, key=lambda layer: (-layer["size"], layer["digest"])):
        table.add_row(layer["digest"][7:19], decimal(layer["size"]), _text(" ".join(layer["packages"])))
    console.print(table)


def _print_difference(difference: dict[str, Any], console: Console) -> None:
    from rich.filesize import decimal
    from rich.table import Table

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


def _text(text: str) -> Text:
    """Return untrusted text, without rich's markup."""
    from rich.text import Text

    return Text(escaped(text))


def _print_line(line: str, console: Console) -> None:
    """Print untrusted text on one line, however long, for filters."""
    console.print(escaped(line), highlight=False, markup=False, soft_wrap=True)
