"""The command line, one module per command."""

from __future__ import annotations

import typer

from nixery import __version__
from nixery.cli.build import build
from nixery.cli.inspect import inspect
from nixery.cli.serve import serve
from nixery.cli.storage import storage

app = typer.Typer(
    help="A container registry that builds the image a client asks for, with Nix.",
    no_args_is_help=True,
    add_completion=False,
)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- typer's callback signature
    if wanted:
        typer.echo(f"nixery {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(  # noqa: FBT001 -- typer's declaration of an option
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """See ``app``'s own help."""


app.command()(serve)
app.command()(build)
app.command()(inspect)
app.add_typer(storage, name="storage")


def main() -> None:
    """Run the command line."""
    app()
