"""``nixery storage``."""

from __future__ import annotations

from typing import Annotated

import typer

storage = typer.Typer(help="Work on whole storages.", no_args_is_help=True)


@storage.callback()
def _storage() -> None:
    """Have a command below this one, though there is only one so far."""


@storage.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="E.g. file:///var/lib/nixery.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="E.g. s3://bucket/prefix, gs://..., az://...")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Copy all blobs and records of a storage into another one.

    What is there already is not copied again, so an interrupted copy is gone on with by the same command. Every blob is digested on
    the way. Credentials come from the environment, as for the server.
    """
    from nixery.cli import copying

    copying.copy(source, target, as_json=as_json)
