"""``nixery scrub``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nixery.gc.scrubber import Finding

_FOUND = 1
_MIB = 1 << 20


def scrub(
    rate: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Limit in MiB per second; 0 for no limit.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify all stored blobs and records, and quarantine broken ones; exit with 1 if there were any.

    Servers may keep running. A broken blob moves to quarantine/ in the storage; the next pull of its image's
    tag builds it again.
    """
    from rich.filesize import decimal

    from nixery.cli.output import BYTES, activity
    from nixery.cli.session import open_storage_session, run
    from nixery.gc.scrubber import Scrubber

    async def command() -> tuple[int, int, list[Finding]]:
        findings: list[Finding] = []
        count = size = 0
        with open_storage_session() as (_, opened), activity(BYTES, quiet=as_json) as shown:
            shown.begin("scrubbing", None if as_json else sum([b.size async for b in opened.blobs.scan()]))
            async for checked in Scrubber(opened.blobs, opened.records, rate * _MIB or None).scrub():
                count += 1
                size += checked.size
                shown.advance(checked.size)
                if checked.finding is not None:
                    findings.append(checked.finding)
                    if not as_json:
                        shown.note(f"{checked.finding.what}: {checked.finding.reason}")
        return count, size, findings

    count, size, findings = run(command, quiet=True)
    if as_json:
        typer.echo(json.dumps({"read": count, "bytes": size, "broken": [asdict(f) for f in findings]}))
    else:
        typer.echo(f"read {count} blobs and records ({decimal(size)}): {len(findings)} broken")
    if findings:
        raise typer.Exit(_FOUND)
