"""The command line: a module for each command's options, and one for what it does, which is imported when it runs."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress

import typer

from nixery import __version__
from nixery.cli.build import build
from nixery.cli.check import check
from nixery.cli.gc import gc
from nixery.cli.inspect import inspect
from nixery.cli.popularity import popularity
from nixery.cli.scrub import scrub
from nixery.cli.serve import serve
from nixery.cli.storage import storage

_IMAGES = "Images"
_SERVER = "Server"
_STORAGE = "Storage"

_HELP = """A container registry that builds the image a client asks for, with Nix.

An image is named after the packages in it: shell/git/jq has git, jq and a shell.

[bold]Examples[/bold]

nixery check

nixery build shell/git --output docker-archive:git.tar

nixery build shell/git --output registry:localhost:5000/git

nixery inspect shell/git --diff shell/jq

nixery build --help

[bold]Environment[/bold]

NIXERY_CHANNEL, NIXERY_PKGS_REPO, NIXERY_PKGS_PATH or NIXERY_FLAKE: where packages come from; one of them is needed.

NIXERY_STORAGE_BACKEND=filesystem, STORAGE_PATH: where layers are kept; serve needs them, others have ~/.cache/nixery.

PORT, NIXERY_HOST: where serve listens.

NIXERY_PLATFORMS: what is built, such as linux/amd64,linux/arm64.

DOCKER_CONFIG, REGISTRY_AUTH_FILE: where logins of registries are. SSL_CERT_FILE: whom to trust.

[bold]Exit status[/bold]

0: done. 1: not done, or something is wrong. 2: wrong options, or, of serve, wrong settings. 143: ended by SIGTERM.
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


def _version(wanted: bool) -> None:  # noqa: FBT001 -- typer's callback signature
    if wanted:
        typer.echo(f"nixery {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _main(
    context: typer.Context,
    version: bool = typer.Option(  # noqa: ARG001, FBT001 -- typer's declaration of an option
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """See ``app``'s own help."""
    # Storage is private to its user, whatever umask the shell sets. Files that a command writes for the user
    # follow the user's own umask.
    context.obj = os.umask(0o077)


app.command(rich_help_panel=_SERVER)(serve)
app.command(rich_help_panel=_SERVER)(check)
app.command(rich_help_panel=_SERVER)(popularity)
app.command(rich_help_panel=_IMAGES)(build)
app.command(rich_help_panel=_IMAGES)(inspect)
app.command(rich_help_panel=_STORAGE)(gc)
app.command(rich_help_panel=_STORAGE)(scrub)
app.add_typer(storage, name="storage", rich_help_panel=_STORAGE)


def main() -> None:
    """Run the command line.

    The process ends before the interpreter takes itself apart, though after everything that is registered for its end. The library that
    talks to buckets has threads which nobody can stop, and now and then one of them wants the interpreter by then: that aborts the
    process (SIGABRT) after all was done (https://github.com/PyO3/pyo3-async-runtimes/issues/40).
    """
    status = [1]
    # What is registered first runs last; what was before is logging's end.
    atexit.register(_end, status)
    try:
        app()
    except SystemExit as end:
        status[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    status[0] = 0


def _end(status: list[int]) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status[0])
