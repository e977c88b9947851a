"""``nixery build``."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nixery.cli.completion import (
    OUTPUT_KINDS,
    complete_name,
    complete_output,
    complete_platform,
    complete_truth,
)
from nixery.errors import StorageError
from nixery.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nixery.nix.packages import NixExpression
    from nixery.oci.documents import Descriptor
    from nixery.push.client import Target
    from nixery.push.push import PushEvent
    from nixery.storage.blobs import BlobStore


@dataclass(frozen=True, slots=True)
class FileOutput:
    """A new OCI layout.

    Attributes:
        place: does not exist yet, but its directory does.
        archive: whether it is a tar archive, which ``docker load`` accepts, too.
    """

    place: Path
    archive: bool


def build(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG]",
            autocompletion=complete_name,
            help="The image's name in the registry, e.g. shell/git.",
        ),
    ] = "",
    expr: Annotated[
        str,
        typer.Option(metavar="NIX", help="Build a Nix expression; `pkgs` is the package set."),
    ] = "",
    file: Annotated[
        Path | None, typer.Option(exists=True, help="Build a Nix file: a function of { pkgs }.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="KIND:PLACE",
            autocompletion=complete_output,
            # Words of 22 characters at most: help on a narrow terminal cuts longer ones.
            help="oci:DIR, oci-archive:FILE, docker-archive:FILE or registry:HOST/NAME, where HOST may have a port "
            "and NAME a tag; a bare path is an archive if it ends in .tar, else a directory. Repeatable.",
        ),
    ] = None,
    tag: Annotated[str, typer.Option(help="Tag of the package source, and of the image in --output.")] = "",
    platform: Annotated[
        list[Platform] | None,
        typer.Option(
            parser=Platform.parse,
            metavar="OS/ARCH",
            autocompletion=complete_platform,
            help="Platform, e.g. linux/arm64; default: NIXERY_PLATFORMS. Repeat it to build an index.",
        ),
    ] = None,
    created: Annotated[
        str,
        typer.Option(
            metavar="DATE",
            help="Date of the image: source (the commit's), build (now), 2026-01-31T12:00:00Z, or seconds since "
            "the epoch; default: NIXERY_CREATED.",
        ),
    ] = "",
    tls_verify: Annotated[
        str,
        typer.Option(
            metavar="true|false",
            autocompletion=complete_truth,
            help="With false, accept any certificate of the registry, and plain HTTP.",
        ),
    ] = "true",
    insecure: Annotated[bool, typer.Option("--insecure", help="Same as --tls-verify=false.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per event, the result last.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the digest.")] = False,
) -> None:
    """Build an image without a server, push it or write it to files, and print its digest.

    The image is the one that a server with the same settings would answer for NAME.

    An expression is a derivation, a list of them, or an image definition: --expr '[ pkgs.git pkgs.jq ]'

    Examples:
    nixery build shell/git --output registry:registry.example.com/tools/git:1

    nixery build shell/git --output docker-archive:git.tar
    """
    if sum(map(bool, (name, expr, file))) != 1:
        raise typer.BadParameter("give one of NAME, --expr and --file")
    if tls_verify not in {"true", "false"}:
        raise typer.BadParameter("--tls-verify is true or false")
    name, tag = split_name(name, tag)
    tag = tag or "latest"

    from nixery.builds.creation_date import CreationDate
    from nixery.builds.image import ImageIndex
    from nixery.cli.output import BarReporter, reporter
    from nixery.cli.session import open_session, run
    from nixery.image.name import requests_for

    try:
        outputs = [parse_output(text, tag) for text in output or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from None
    try:
        date = CreationDate.parse(created) if created else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--created") from None
    expression = _expression(expr, file)
    wanted = expression.attribute if expression else name
    verify = tls_verify == "true" and not insecure
    shown = reporter(as_json=as_json, quiet=quiet)

    async def command() -> dict[str, Any]:
        check_outputs(outputs)
        async with open_session(expression, shown, created=date) as (components, resources):
            platforms = tuple(dict.fromkeys(platform or ())) or resources.platforms
            found = await components.images.get(requests_for(wanted, platforms), tag)
            root = found.image.index if isinstance(found.image, ImageIndex) else found.image.manifest
            deliver = _Delivery(components.blobs, root.descriptor, wanted, tag, context.find_root().obj)
            for one in outputs:
                await deliver.to(one, shown.pushing, tls_verify=verify)
        places = [str(one.place if isinstance(one, FileOutput) else one) for one in outputs]
        if not outputs and not quiet and not as_json:
            typer.echo("the image is in this machine's storage alone; --output writes or pushes it", err=True)
        return {
            "digest": str(root.descriptor.digest),
            "name": wanted,
            "tag": tag,
            "revision": found.pinned.pin.revision,
            "outputs": places,
        }

    # Log lines would run through the bars.
    silent = quiet or as_json or isinstance(shown, BarReporter)
    with closing(shown):
        shown.finished(run(command, quiet=silent, failed=shown.failed))


def split_name(name: str, tag: str) -> tuple[str, str]:
    """Split ``NAME[:TAG]``, and return the name and the tag, which may also come from an option.

    Raises:
        typer.BadParameter: there are two tags, or the name begins with the host and the port of a registry.
    """
    if image := behind_registry(name):
        raise typer.BadParameter(f"give the name without the registry: {image}")
    name, _, name_tag = name.partition(":")
    if name_tag and tag:
        raise typer.BadParameter("give a tag with the name or with an option")
    return name, name_tag or tag


def behind_registry(name: str) -> str:
    """Return the name of an image behind the host and the port of a registry; empty for a name without them."""
    port, _, image = name.partition(":")[2].partition("/")
    return image if port.isdecimal() else ""


def parse_output(text: str, tag: str) -> FileOutput | Target:
    """Parse ``oci:DIRECTORY``, ``oci-archive:FILE``, ``docker-archive:FILE``, ``registry:TARGET``, or a path.

    A path with a colon needs a slash before the colon; other words in front of a colon are no kinds.

    Args:
        text: value of the option.
        tag: of the image.

    Raises:
        ValueError: it is invalid.
    """
    from nixery.push.client import Target

    kind, colon, rest = text.partition(":")
    if not rest and (colon or f"{kind}:" in OUTPUT_KINDS):
        place = "HOST[:PORT]/NAME[:TAG]" if kind == "registry" else "DIR" if kind == "oci" else "FILE"
        path = "" if colon else f"; a path is written ./{text}"
        raise ValueError(f"{text!r} has no place: write {kind}:{place}{path}")
    match kind if colon else "":
        case "registry":
            return Target.parse(rest, tag)
        case "oci":
            return FileOutput(Path(rest).absolute(), archive=False)
        case "oci-archive" | "docker-archive":
            return FileOutput(Path(rest).absolute(), archive=True)
        case word if word and "/" not in word:
            kinds = ", ".join(kind.rstrip(":") for kind in OUTPUT_KINDS)
            near = "".join(
                f"; did you mean {name}?" for name in get_close_matches(word, kinds.split(", "), 1)
            )
            raise ValueError(f"{word!r} is not a kind of output ({kinds}){near}; a path is written ./{text}")
        case _:
            return FileOutput(Path(text).absolute(), archive=text.endswith(".tar"))


def check_outputs(outputs: Sequence[FileOutput | Target]) -> None:
    """Check that all files can be written, before minutes of building.

    Raises:
        StorageError: a file cannot be written.
    """
    places = [output.place for output in outputs if isinstance(output, FileOutput)]
    if len(set(places)) < len(places):
        raise StorageError("two outputs have the same path")
    for place in places:
        try:
            exists = place.exists()
        except OSError as error:
            raise StorageError(f"cannot write {place}: {error.strerror}") from error
        if exists:
            raise StorageError(f"cannot write {place}: it exists already")
        if not place.parent.is_dir():
            raise StorageError(f"cannot write {place}: there is no directory {place.parent}")
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise StorageError(f"cannot write {place}: no permission to write to {place.parent}")


@dataclass(slots=True)
class _Delivery:
    """Writes and pushes one image.

    Attributes:
        umask: of the user, for files.
    """

    blobs: BlobStore
    root: Descriptor
    name: str
    tag: str
    umask: int
    _pushed: dict[str, str] = field(default_factory=dict)

    async def to(
        self, output: FileOutput | Target, observe: Callable[[PushEvent], None], *, tls_verify: bool
    ) -> None:
        from nixery.nix.environments import credential_environment
        from nixery.push.push import PushOptions, push
        from nixery.storage.oci_layout import write_layout

        if isinstance(output, FileOutput):
            place, archive = output.place, output.archive
            await write_layout(
                self.blobs, self.root, self.name, self.tag, place, archive=archive, umask=self.umask
            )
            return
        # A repository on the same host that has the blobs by now.
        source = self._pushed.get(output.host, "")
        options = PushOptions(tls_verify=tls_verify, mount_from=source if source != output.name else "")
        logins = credential_environment(os.environ)
        await push(self.blobs, self.root.digest, output, logins, observe, options)
        self._pushed.setdefault(output.host, output.name)


def _expression(text: str, file: Path | None) -> NixExpression | None:
    from nixery.nix.packages import NixExpression

    if file is not None:
        # JSON strings are Nix strings, except for the characters that begin an interpolation in Nix.
        path = json.dumps(str(file.absolute())).replace("${", r"\${")
        stem = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")
        return NixExpression(stem or "image", f"import (/. + {path})")
    return NixExpression("expression", f"{{ pkgs }}: ({text}\n)") if text else None
