"""``nixery build``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from nixery.cli.workshop import run, workshop
from nixery.errors import StorageError
from nixery.image.platform import Platform
from nixery.image.request import requests_for
from nixery.nix.builder import NixExpression
from nixery.oci.descriptor import Descriptor
from nixery.pipeline.image import ImageIndex
from nixery.storage.layout import write_layout


def build(
    name: Annotated[
        str, typer.Argument(help="What the image would be called in the registry, e.g. shell/git.")
    ] = "",
    expr: Annotated[
        str, typer.Option(metavar="NIX", help="Build what an expression gives; `pkgs` is the package set.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option(exists=True, help="Build what a Nix file gives; called with { pkgs }.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New OCI layout directory, or archive if it ends in .tar."),
    ] = None,
    tag: Annotated[str, typer.Option(help="Of the package source, and of the image in --output.")] = "latest",
    platform: Annotated[
        Platform | None,
        typer.Option(parser=Platform.parse, help="E.g. linux/arm64, instead of NIXERY_PLATFORMS."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the digest.")] = False,
) -> None:
    """Build an image without a server, and print its digest.

    It is what a server with the same settings would answer for NAME. An expression gives a derivation, a list of them, or an image
    definition: --expr '[ pkgs.git pkgs.jq ]'. Recipes for these are in docs/images.md.
    """
    if sum(map(bool, (name, expr, file))) != 1:
        raise typer.BadParameter("give one of NAME, --expr and --file")
    expression = _expression(expr, file)
    wanted = expression.attribute if expression else name

    async def command() -> Descriptor:
        if output is not None and output.exists():  # rather now than after minutes of building
            raise StorageError(f"{output} exists already")
        async with workshop(expression) as (wired, prepared):
            platforms = (platform,) if platform else prepared.platforms
            found = await wired.images.get(requests_for(wanted, platforms), tag)
            root = found.image.index if isinstance(found.image, ImageIndex) else found.image.manifest
            if output is not None:
                await write_layout(wired.blobs, root.descriptor, wanted, tag, output.absolute())
        return root.descriptor

    typer.echo(str(run(command, quiet=quiet).digest))


def _expression(text: str, file: Path | None) -> NixExpression | None:
    if file is not None:
        # JSON's strings are Nix's, but for the one thing that begins an interpolation there.
        path = json.dumps(str(file.absolute())).replace("${", r"\${")
        stem = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")
        return NixExpression(stem or "image", f"import (/. + {path})")
    return NixExpression("expression", f"{{ pkgs }}: ({text}\n)") if text else None
