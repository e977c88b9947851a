"""``nixery storage``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from nixery.errors import StorageError

if TYPE_CHECKING:
    from nixery.storage.copy import Copied
    from nixery.storage.opening import Storage
    from nixery.storage.options import Backend

_BROKEN = 1

# The backend of each scheme of URLs, except for `file`.
_BACKENDS: Mapping[str, Backend] = {"s3": "s3", "gs": "gcs", "az": "azure"}

storage = typer.Typer(help="Work on whole storages.", no_args_is_help=True)


@storage.callback()
def _storage() -> None:
    """Make typer expect a subcommand, although there is only one so far."""


@storage.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Source, e.g. file:///var/lib/nixery.")],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="Target, e.g. s3://bucket/prefix, gs://..., az://...")
    ],
    api_tokens: Annotated[
        bool,
        typer.Option(
            "--api-tokens", help="Copy API tokens, too: the target then accepts those of the source."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy all blobs and records of a storage to another one, verifying every blob.

    Blobs that the target has are skipped, so running the command again resumes an interrupted copy.
    Credentials come from the environment, as for the server.
    """
    from rich.filesize import decimal

    from nixery.cli.output import BYTES, activity
    from nixery.cli.session import run
    from nixery.storage.copy import copy_storage

    async def command() -> Copied:
        with (
            tempfile.TemporaryDirectory(prefix="nixery-") as temporary,
            activity(BYTES, quiet=as_json) as shown,
        ):
            opened = (
                _open(source, Path(temporary), must_exist=True),
                _open(target, Path(temporary), must_exist=False),
            )
            shown.begin("copying")
            before = 0

            def show(done: Copied) -> None:
                nonlocal before
                shown.update(f"{done.copied} of {done.blobs} blobs copied, {done.records} records")
                shown.advance(done.size - before)
                before = done.size

            return await copy_storage(opened[0], opened[1], show, api_tokens=api_tokens)

    done = run(command, quiet=True)
    if as_json:
        numbers = {"blobs": done.blobs, "copied": done.copied, "bytes": done.size, "records": done.records}
        typer.echo(json.dumps({**numbers, "broken": list(map(str, done.broken))}))
    else:
        typer.echo(
            f"{done.copied} of {done.blobs} blobs copied ({decimal(done.size)}), {done.records} records"
        )
    for digest in done.broken:
        typer.echo(f"nixery: skipped a broken blob: {digest}", err=True)
    if done.broken:
        raise typer.Exit(_BROKEN)


def _open(url: str, temporary: Path, *, must_exist: bool) -> Storage:
    from nixery.storage.files import make_directory, make_storage_directory
    from nixery.storage.opening import open_storage
    from nixery.storage.options import StorageOptions

    parts = urlsplit(url)
    if parts.scheme == "file":
        root = Path(unquote(parts.path))
        # Opening would create an empty one. A bucket has to exist in either case.
        if must_exist and not root.exists():
            raise StorageError(f"there is no storage at {root}")
        # On the same file system as the blobs: finished files are moved there.
        make_storage_directory(root)
        make_directory(root / "temporary")
        return open_storage(StorageOptions("filesystem", root), root / "temporary", os.environ)
    if parts.scheme not in _BACKENDS or not parts.netloc:
        raise StorageError(
            f"unknown storage {url}: use file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET or az://CONTAINER"
        )
    # No client is redirected, and a blob that is read once needs no cache.
    options = StorageOptions(
        _BACKENDS[parts.scheme], temporary, bucket=parts.netloc, prefix=parts.path, redirects=False
    )
    return open_storage(options, temporary, os.environ)
