"""``nixery build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nixery.cli.completion import complete_name, complete_output, complete_platform, complete_truth
from nixery.image.platform import Platform


def build(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            autocompletion=complete_name,
            help="What the image would be called in the registry, e.g. shell/git.",
        ),
    ] = "",
    expr: Annotated[
        str, typer.Option(metavar="NIX", help="Build what an expression gives; `pkgs` is the package set.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option(exists=True, help="Build what a Nix file gives; called with { pkgs }.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="KIND:PLACE",
            autocompletion=complete_output,
            help="oci:DIR, oci-archive:FILE, docker-archive:FILE or registry:HOST[:PORT]/NAME[:TAG]; a path alone "
            "is an archive if it ends in .tar, else a directory. May be given several times.",
        ),
    ] = None,
    tag: Annotated[str, typer.Option(help="Of the package source, and of the image in --output.")] = "",
    platform: Annotated[
        list[Platform] | None,
        typer.Option(
            parser=Platform.parse,
            metavar="OS/ARCH",
            autocompletion=complete_platform,
            help="E.g. linux/arm64, instead of NIXERY_PLATFORMS; several make an index.",
        ),
    ] = None,
    tls_verify: Annotated[
        str,
        typer.Option(
            metavar="true|false",
            autocompletion=complete_truth,
            help="false: the registry may have any certificate, or plain HTTP.",
        ),
    ] = "true",
    insecure: Annotated[bool, typer.Option("--insecure", help="As --tls-verify=false.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object per event, the result last.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the digest.")] = False,
) -> None:
    """Build an image without a server, push it or write it to files, and print its digest.

    It is what a server with the same settings would answer for NAME. An expression gives a derivation, a list of them, or an image
    definition: --expr '[ pkgs.git pkgs.jq ]'. For example:

    nixery build shell/git --output registry:registry.example.com/tools/git:1

    nixery build shell/git --output docker-archive:git.tar
    """
    if sum(map(bool, (name, expr, file))) != 1:
        raise typer.BadParameter("give one of NAME, --expr and --file")
    if tls_verify not in {"true", "false"}:
        raise typer.BadParameter("--tls-verify is true or false")
    name, _, its_tag = name.partition(":")
    if its_tag and tag:
        raise typer.BadParameter("give the tag with NAME or with --tag")
    tag = its_tag or tag or "latest"

    from nixery.cli import building
    from nixery.cli.output import reporter
    from nixery.cli.outputs import parse_output

    try:
        outputs = [parse_output(text, tag) for text in output or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None
    building.build(
        name,
        building.parse_expression(expr, file),
        tag,
        outputs,
        tuple(dict.fromkeys(platform or ())),
        reporter(as_json=as_json, quiet=quiet),
        quiet=quiet or as_json,
        tls_verify=tls_verify == "true" and not insecure,
        umask=context.find_root().obj,
    )
