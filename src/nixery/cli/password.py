"""``nixery password``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

# Characters that are read; more than the longest password has.
_LONGEST = 4096


def password(
    user: Annotated[str, typer.Argument(metavar="USER", help="Name of the user.")],
    from_stdin: Annotated[
        bool,
        typer.Option("--stdin", help="Read the password from the first line of stdin, without a prompt."),
    ] = False,
) -> None:
    """Print a line for the htpasswd file of the access rules: a user, and a password hashed by argon2id.

    Prompts twice for the password. Only the line goes to stdout. Example:

        nixery password alice >> /etc/nixery/htpasswd
    """
    from nixery.access.passwords import htpasswd_line

    if from_stdin:
        given = sys.stdin.readline(_LONGEST).rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise typer.BadParameter("stdin is not a terminal: use --stdin to read the password from it")
    else:
        given = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    try:
        line = htpasswd_line(user, given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(line)
