"""What ``nixery storage copy`` does."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import typer
from rich.filesize import decimal

from nixery.cli.output import BYTES, activity
from nixery.cli.session import run
from nixery.errors import StorageError
from nixery.settings import StorageSettings
from nixery.storage.copy import Copied, copy_storage
from nixery.storage.files import make_directory, make_storage_directory
from nixery.storage.opening import Storage, open_storage

_BACKENDS = {
    "s3": ("s3", "S3_BUCKET"),
    "gs": ("gcs", "GCS_BUCKET"),
    "az": ("azure", "AZURE_CONTAINER_NAME"),
}


def copy(source: str, target: str, *, as_json: bool) -> None:
    """See ``nixery.cli.storage.copy``."""

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
                shown.tell(f"{done.copied} of {done.blobs} blobs copied, {done.records} records")
                shown.advance(done.size - before)
                before = done.size

            return await copy_storage(opened[0], opened[1], show)

    done = run(command, quiet=True)
    if as_json:
        numbers = {"blobs": done.blobs, "copied": done.copied, "bytes": done.size, "records": done.records}
        typer.echo(json.dumps({**numbers, "broken": list(map(str, done.broken))}))
    else:
        typer.echo(
            f"{done.copied} of {done.blobs} blobs copied ({decimal(done.size)}), {done.records} records"
        )
    for digest in done.broken:
        typer.echo(f"nixery: {digest} is broken and was left out", err=True)
    if done.broken:
        raise typer.Exit(1)


def _open(url: str, temporary: Path, *, must_exist: bool) -> Storage:
    parts = urlsplit(url)
    if parts.scheme == "file":
        root = Path(unquote(parts.path))
        # Rather than make one and copy nothing out of it. A bucket has to be there anyway.
        if must_exist and not root.exists():
            raise StorageError(f"there is no storage at {root}")
        # On the same file system as the blobs, to where files are moved from there.
        make_storage_directory(root)
        make_directory(root / "temporary")
        given = {"NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(root)}
        return open_storage(StorageSettings.model_validate(given), root / "temporary", os.environ)
    if parts.scheme not in _BACKENDS or not parts.netloc:
        raise StorageError(f"{url} is none of file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET, az://CONTAINER")
    backend, variable = _BACKENDS[parts.scheme]
    given = {"NIXERY_STORAGE_BACKEND": backend, variable: parts.netloc, "S3_PREFIX": parts.path}
    # No client is sent anywhere, and what is read once needs no copy.
    given |= {"STORAGE_PATH": str(temporary), "NIXERY_BLOB_DELIVERY": "proxy", "NIXERY_CACHE_SIZE": "0"}
    return open_storage(StorageSettings.model_validate(given), temporary, os.environ)
