"""``nixery tls``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from nixery.errors import NixeryError

tls = typer.Typer(no_args_is_help=True, help="Make certificates for a trial.")


@tls.callback()
def _tls() -> None:
    """Make certificates for a trial."""


@tls.command("self-signed")
def self_signed(
    host: Annotated[
        list[str],
        typer.Option(
            metavar="HOST", help="Name or address by which clients reach the server; repeat it for several."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory for the files; made if needed.")],
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="Port of the server, for the instructions.")
    ] = 8443,
    days: Annotated[
        int, typer.Option(min=1, max=825, metavar="DAYS", help="Validity of the certificates, in days.")
    ] = 90,
) -> None:
    """Make an authority and a server certificate for a trial, and print what server and clients need.

    Example: nixery tls self-signed --host registry.example.org --host 192.0.2.7 --out tls
    """
    from nixery.cli.logs import print_line
    from nixery.server.self_signed import make_certificates, trust_instructions

    try:
        make_certificates(host, out, timedelta(days=days))
    except NixeryError as error:
        print_line(str(error))
        raise typer.Exit(1) from None
    typer.echo(trust_instructions(host[0], port, out), nl=False)
