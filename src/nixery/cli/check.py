"""``nixery check``."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a list of findings.")] = False,
) -> None:
    """Look at settings, Nix, storage and package source: what is right, and what to do about what is not.

    Exits with 1 if something is wrong. For example: NIXERY_CHANNEL=nixos-unstable nixery check
    """
    from nixery.cli import checking

    checking.check(as_json=as_json)
