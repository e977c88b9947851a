"""``nixery scrub``."""

from __future__ import annotations

from typing import Annotated

import typer


def scrub(
    rate: Annotated[int, typer.Option(min=0, metavar="MIB", help="MiB a second; 0 for all there is.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Read everything that is stored, and put what is broken out of the way; status 1 if something was.

    Servers may go on meanwhile. A broken blob goes to quarantine/ in the storage; its image is built again at the next pull of its tag.
    """
    from nixery.cli import scrubbing

    scrubbing.scrub(rate, as_json=as_json)
