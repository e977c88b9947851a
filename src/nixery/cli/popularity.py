"""``nixery popularity``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, NoReturn

import typer

from nixery.cli.completion import BASES, complete_basis, complete_platform
from nixery.image.platform import Platform

_NOTHING = 1
_WRONG_USAGE = 2
_LONGEST_NAME = 255
_STDIN = "-"


def popularity(
    packages: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Count only these packages, one name per line; - for stdin."),
    ] = None,
    basis: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="auto|closures|derivations",
            autocompletion=complete_basis,
            help="Count references in closures, which Nix has to realise first, or between derivations; auto: in closures unless Nix would have to build.",
        ),
    ] = "auto",
    tag: Annotated[str, typer.Option(help="Tag of the package source.")] = "latest",
    platform: Annotated[
        Platform | None,
        typer.Option(
            parser=Platform.parse,
            metavar="OS/ARCH",
            autocompletion=complete_platform,
            help="Platform; default: the first of NIXERY_PLATFORMS.",
        ),
    ] = None,
) -> None:
    """Print the number of references to each package in the package set: a file for NIX_POPULARITY_URL.

    Runs up to NIXERY_MAX_BUILDS processes. Interrupt it at any time; the next run resumes.
    """
    if basis not in BASES:
        raise typer.BadParameter(f"--from is one of {', '.join(BASES)}")

    from nixery.builds.popularity import Basis
    from nixery.cli.output import activity
    from nixery.cli.session import open_session, run

    names = None if packages is None else _names(packages)

    async def command() -> dict[str, int] | None:
        # The popularity data that this command makes may not exist yet.
        async with open_session(without={"NIX_POPULARITY_URL"}) as (components, resources):
            # A step is a whole batch, worth a line.
            with activity("packages", pause=0) as watcher:
                return await components.counting.count(
                    names, tag, platform or resources.platforms[0], Basis(basis), watcher
                )

    counts = run(command, quiet=True)
    if counts is None:
        typer.echo("nixery: cannot count any package", err=True)
        raise typer.Exit(_NOTHING)
    typer.echo(json.dumps(counts, indent=0, sort_keys=True))


def _names(file: str) -> list[str]:
    try:
        if file == _STDIN:
            content = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as opened:  # noqa: PTH123 -- also /dev/stdin and pipes
                content = opened.read()
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError:
        _refuse(file, "not UTF-8 text")
    except OSError as error:
        _refuse(file, error.strerror or str(error))
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST_NAME or not line.isprintable() or " " in line:
            _refuse(file, f"line {number} is not a package name: {line[:40]!r}")
    names = [line for line in lines if line]
    if not names:
        _refuse(file, "it contains no name")
    return names


def _refuse(file: str, reason: str) -> NoReturn:
    from nixery.cli.logs import print_line

    print_line(f"cannot read --packages {file}: {reason}")
    raise typer.Exit(_WRONG_USAGE)
