"""``nixery scrub``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

_FOUND = 1
_MIB = 1 << 20


def scrub(
    rate: Annotated[int, typer.Option(min=0, metavar="MIB", help="MiB a second; 0 for all there is.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Read everything that is stored, and put what is broken out of the way; status 1 if something was.

    Servers may go on meanwhile. A broken blob goes to quarantine/ in the storage; its image is built again at the next pull of its tag.
    """
    # What every command but this one can do without.
    from nixery.cli.workshop import run, storehouse
    from nixery.upkeep.scrubber import Finding, Scrubber

    console = Console(stderr=True)

    async def command() -> tuple[int, int, list[Finding]]:
        findings: list[Finding] = []
        count = size = 0
        with storehouse() as (_, opened), _progress(console, show=not as_json) as progress:
            total = sum([blob.size async for blob in opened.blobs.scan()]) if console.is_terminal else None
            task = progress.add_task("scrubbing", total=total)
            async for checked in Scrubber(opened.blobs, opened.records, rate * _MIB or None).scrub():
                count += 1
                size += checked.size
                progress.advance(task, checked.size)
                if checked.finding is not None:
                    findings.append(checked.finding)
                    if not as_json:
                        # One line, for whoever reads or filters it.
                        progress.console.print(
                            f"{checked.finding.what}: {checked.finding.reason}", soft_wrap=True, markup=False
                        )
        return count, size, findings

    count, size, findings = run(command, quiet=True)
    if as_json:
        typer.echo(json.dumps({"read": count, "bytes": size, "broken": [asdict(f) for f in findings]}))
    else:
        typer.echo(f"read {count} blobs and records ({decimal(size)}): {len(findings)} broken")
    if findings:
        raise typer.Exit(_FOUND)


def _progress(console: Console, *, show: bool) -> Progress:
    # On a terminal alone: elsewhere there are plain lines.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
