"""What ``nixery gc`` does."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.filesize import decimal

from nixery.cli.output import activity
from nixery.cli.session import open_storage_session, run
from nixery.gc.collector import Collector, GcResult, RetentionPolicy


def collect(max_age: int | None, max_size: int | None, *, dry_run: bool, as_json: bool) -> None:
    """See ``nixery.cli.gc.gc``."""

    async def command() -> GcResult:
        with open_storage_session() as (settings, opened), activity("blobs", quiet=as_json) as shown:
            shown.begin("finding what is in use")

            def observe(done: GcResult) -> None:
                would = "would be " if dry_run else ""
                shown.tell(f"{done.deleted} {would}deleted ({decimal(done.deleted_bytes)}), {done.kept} kept")
                shown.advance(1)

            collector = Collector(opened.blobs, opened.records, settings.storage_grace)
            return await collector.collect(
                RetentionPolicy(max_age, max_size), dry_run=dry_run, observe=observe
            )

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
