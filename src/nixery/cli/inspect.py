"""``nixery inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from nixery.cli.completion import complete_name, complete_platform
from nixery.image.platform import Platform


def inspect(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            autocompletion=complete_name,
            help="An image, e.g. shell/git; it is built if it was not before.",
        ),
    ],
    diff: Annotated[
        str,
        typer.Option(
            metavar="OTHER[:TAG]",
            autocompletion=complete_name,
            help="Tell what changes from NAME to another image.",
        ),
    ] = "",
    tag: Annotated[str, typer.Option(help="Of the package source; latest if it is not given.")] = "",
    diff_tag: Annotated[str, typer.Option(help="Of the other image; as --tag if it is not given.")] = "",
    platform: Annotated[
        Platform | None,
        typer.Option(
            parser=Platform.parse,
            metavar="OS/ARCH",
            autocompletion=complete_platform,
            help="Instead of the first of NIXERY_PLATFORMS.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Print what an image says about itself, its layers with their packages and sizes, and what it shares with another one.

    For example: nixery inspect shell/git --diff shell/jq
    """
    name, tag = _parted(name, tag)
    other, diff_tag = _parted(diff, diff_tag)

    from nixery.cli import inspecting

    tag = tag or "latest"
    inspecting.inspect(name, other, tag, diff_tag or tag, platform, as_json=as_json)


def _parted(name: str, tag: str) -> tuple[str, str]:
    name, _, its_tag = name.partition(":")
    if its_tag and tag:
        raise typer.BadParameter("give a tag with the name or with an option")
    return name, its_tag or tag
