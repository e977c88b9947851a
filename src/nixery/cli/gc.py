"""``nixery gc``."""

from __future__ import annotations

from typing import Annotated

import typer


def _seconds(text: str) -> object:
    from nixery.quantities import seconds

    return seconds(text)


def _size(text: str) -> object:
    from nixery.quantities import size

    return size(text)


def gc(
    max_age: Annotated[
        int | None,
        typer.Option(parser=_seconds, metavar="TIME", help="Delete images not used for so long, e.g. 30d."),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            help="Delete images, those not used the longest first, until it fits.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Delete images that were not used for a while, and whatever no image needs.

    Servers may go on meanwhile. Nothing that was stored or used within NIXERY_STORAGE_GRACE (two hours) goes.
    """
    from nixery.cli import collecting

    collecting.collect(max_age, max_size, dry_run=dry_run, as_json=as_json)
