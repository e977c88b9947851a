"""The command line: one module per command.

The commands import nixery's heavier modules when they run, so that ``--help`` and completion are fast.
"""

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
from nixery.cli.password import password
from nixery.cli.popularity import popularity
from nixery.cli.scrub import scrub
from nixery.cli.serve import serve
from nixery.cli.storage import storage
from nixery.cli.tls import tls
from nixery.cli.token import token

_IMAGES = "Images"
_SERVER = "Server"
_STORAGE = "Storage"
_ACCESS = "Access"

_HELP = """A container registry that builds the image a client asks for, with Nix.

An image is named after the packages in it: shell/git/jq has git, jq and a shell.

[bold]Examples[/bold]

nixery check

nixery build shell/git --output docker-archive:git.tar

nixery build shell/git --output registry:localhost:5000/git

nixery inspect shell/git --diff shell/jq

nixery build --help

[bold]Environment[/bold]

NIXERY_CHANNEL, NIXERY_PKGS_REPO, NIXERY_PKGS_PATH or NIXERY_FLAKE: the package source; set one of them.

NIXERY_STORAGE_BACKEND, STORAGE_PATH: the storage; serve needs them, other commands default to ~/.cache/nixery.

PORT, NIXERY_HOST: the address that serve listens on.

NIXERY_PLATFORMS: the platforms to build for, such as linux/amd64,linux/arm64.

DOCKER_CONFIG, REGISTRY_AUTH_FILE: logins for registries. SSL_CERT_FILE: trusted certificates.

[bold]Exit status[/bold]

0: success. 1: failure, or check found something wrong. 2: invalid options or, for serve, settings. 143: ended by SIGTERM.
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
    # The storage is private to its user under any umask. Outputs of `build` follow the user's umask.
    context.obj = os.umask(0o077)


app.command(rich_help_panel=_SERVER)(serve)
app.command(rich_help_panel=_SERVER)(check)
app.command(rich_help_panel=_SERVER)(popularity)
app.add_typer(tls, name="tls", rich_help_panel=_SERVER)
app.command(rich_help_panel=_IMAGES)(build)
app.command(rich_help_panel=_IMAGES)(inspect)
app.command(rich_help_panel=_STORAGE)(gc)
app.command(rich_help_panel=_STORAGE)(scrub)
app.add_typer(storage, name="storage", rich_help_panel=_STORAGE)
app.add_typer(token, name="token", rich_help_panel=_ACCESS)
app.command(rich_help_panel=_ACCESS)(password)


def main() -> None:
    """Run the command line.

    The process exits after all other exit handlers, but before the interpreter is finalised: obstore has
    threads that cannot be stopped, and one that needs the interpreter while it is finalised aborts the
    process (https://github.com/PyO3/pyo3-async-runtimes/issues/40).
    """
    status = [1]
    # Exit handlers run in reverse order; only logging's was registered before this one.
    atexit.register(_exit, status)
    try:
        app()
    except SystemExit as end:
        status[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    status[0] = 0


def _exit(status: list[int]) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status[0])
