"""``nixery gc``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.filesize import decimal

from nixery.settings.quantities import seconds, size
from nixery.upkeep.limits import Collected, Limits


def gc(
    max_age: Annotated[
        int | None,
        typer.Option(parser=seconds, metavar="TIME", help="Delete images not used for so long, e.g. 30d."),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=size,
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

    Servers may go on meanwhile. Nothing that was stored or used within NIXERY_STORAGE_GRACE (an hour) goes.
    """
    # What every command but this one can do without.
    from nixery.cli.workshop import run, storehouse
    from nixery.upkeep.collector import Collector

    async def command() -> Collected:
        with storehouse() as (settings, opened):
            collector = Collector(opened.blobs, opened.records, settings.storage_grace)
            return await collector.collect(Limits(max_age, max_size), dry_run=dry_run)

    result = run(command, quiet=True)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    verb = "would delete" if dry_run else "deleted"
    records = "" if dry_run else f" and {result.records} records"
    typer.echo(
        f"{verb} {result.deleted} blobs ({decimal(result.deleted_bytes)}){records};"
        f" {result.kept} blobs ({decimal(result.kept_bytes)}) stay"
    )
    if result.over:
        typer.echo(f"{decimal(result.over)} more than {decimal(max_size or 0)} are in use", err=True)
