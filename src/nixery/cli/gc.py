"""``nixery gc``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nixery.gc.collector import GcResult


def _seconds(text: str) -> object:
    from nixery.quantities import seconds

    return seconds(text)


def _size(text: str) -> object:
    from nixery.quantities import size

    return size(text)


def gc(
    max_age: Annotated[
        int | None,
        typer.Option(parser=_seconds, metavar="TIME", help="Delete images not used for this long, e.g. 30d."),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            help="Delete the least recently used images until the storage has at most this size, e.g. 100G.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Delete images that were not used recently, and blobs that no image uses.

    Servers may keep running. Anything stored or used within NIXERY_STORAGE_GRACE (two hours) is kept.
    """
    from rich.filesize import decimal

    from nixery.cli.output import activity
    from nixery.cli.session import open_storage_session, run
    from nixery.gc.collector import Collector, RetentionPolicy

    async def command() -> tuple[GcResult, float]:
        with open_storage_session() as (settings, opened), activity("blobs", quiet=as_json) as shown:
            shown.begin("finding images in use")

            def observe(done: GcResult) -> None:
                would = "would be " if dry_run else ""
                shown.update(
                    f"{done.deleted} {would}deleted ({decimal(done.deleted_bytes)}), {done.kept} kept"
                )
                shown.advance(1)

            collector = Collector(opened.blobs, opened.records, settings.storage_grace)
            policy = RetentionPolicy(max_age, max_size)
            result = await collector.collect(policy, dry_run=dry_run, observe=observe)
            return result, settings.storage_grace

    result, grace = run(command, quiet=True)
    if max_age is not None and max_age < grace:
        typer.echo(
            f"nothing that was stored or used in the last {grace:g} seconds (NIXERY_STORAGE_GRACE) is deleted,"
            f" so --max-age has no effect below that",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    verb = "would delete" if dry_run else "deleted"
    records = "" if dry_run else f" and {result.records} records"
    typer.echo(
        f"{verb} {result.deleted} blobs ({decimal(result.deleted_bytes)}){records};"
        f" kept {result.kept} blobs ({decimal(result.kept_bytes)})"
    )
    if result.over:
        typer.echo(f"images in use exceed {decimal(max_size or 0)} by {decimal(result.over)}", err=True)
