"""OCI image layouts (image specification, image-layout.md): images in a directory, or in an archive of one."""

from __future__ import annotations

import asyncio
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nixery.errors import BlobUnknown, StorageError
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, MediaType, canonical_json
from nixery.storage.blobs import BlobStore, StoredBlob, StoredFile

_REFERENCE = "org.opencontainers.image.ref.name"

# The name that containerd, Docker and Podman give to an image that they load. Without it, Podman takes the
# tag for a name.
_NAME = "io.containerd.image.name"


async def write_layout(  # noqa: PLR0913 -- an image, its names, and the format
    blobs: BlobStore, root: Descriptor, name: str, tag: str, place: Path, *, archive: bool, umask: int
) -> None:
    """Write an image, or an index and all its images, to a new place.

    Args:
        blobs: the image's storage.
        root: digest of the manifest or index.
        name: of the repository: the image loads as ``localhost/<name>:<tag>``.
        tag: its name in the layout.
        place: must not exist yet.
        archive: whether to write an archive rather than a directory.
        umask: of the user; this process's own umask is that of the storage.

    Raises:
        StorageError: it exists, cannot be written, or the index lists no image.
        BlobUnknown: a part of the image is missing.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as temporary:
            layout = Path(temporary) / "layout"
            await _write(blobs, root, name, tag, layout)
            finished = await asyncio.to_thread(_archive, layout) if archive else layout
            await asyncio.to_thread(_set_modes, finished, umask)
            await asyncio.to_thread(_move, finished, place)
    except OSError as error:
        raise StorageError(f"cannot write {place}: {error.strerror}") from error


def _set_modes(finished: Path, umask: int) -> None:
    for path in (finished, *finished.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _move(finished: Path, place: Path) -> None:
    if place.exists():
        raise StorageError(f"cannot write {place}: it exists already")
    finished.rename(place)


async def _write(blobs: BlobStore, root: Descriptor, name: str, tag: str, layout: Path) -> None:
    directory = layout / "blobs" / "sha256"
    directory.mkdir(parents=True)
    for document in await _copy_all(blobs, [root.digest], directory):
        # An index leads to manifests, a manifest to its config and layers.
        for manifest in await _copy_all(blobs, _digests(document.get("manifests", [])), directory):
            await _copy_all(blobs, _parts(manifest), directory, documents=False)
        await _copy_all(blobs, _parts(document), directory, documents=False)
    await _write_for_docker(blobs, root, f"{name}:{tag}", layout)
    entry = {**root.as_json(), "annotations": {_REFERENCE: tag, _NAME: f"localhost/{name}:{tag}"}}
    index = {"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": [entry]}
    (layout / "index.json").write_bytes(canonical_json(index))
    (layout / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))


async def _write_for_docker(blobs: BlobStore, root: Descriptor, reference: str, layout: Path) -> None:
    """Describe the image, or the first one of an index, as ``docker save`` does: older versions of ``docker load`` need it."""
    document = await _read(blobs, root.digest)
    if "manifests" in document:
        if not document["manifests"]:
            raise StorageError(
                f"cannot write {reference} as an OCI layout: its index {root.digest} lists no image"
            )
        document = await _read(blobs, Digest.parse(document["manifests"][0]["digest"]))
    config, *layers = (f"blobs/sha256/{digest.hex}" for digest in _parts(document))
    described = [{"Config": config, "RepoTags": [f"localhost/{reference}"], "Layers": layers}]
    (layout / "manifest.json").write_bytes(canonical_json(described))


async def _read(blobs: BlobStore, digest: Digest) -> dict[str, Any]:
    blob = await blobs.find(digest)
    if blob is None:
        raise BlobUnknown(str(digest))
    return await _document(blobs, blob)


async def _document(blobs: BlobStore, blob: StoredBlob) -> dict[str, Any]:
    content = await blobs.read(blob)
    if content is None:
        raise BlobUnknown(str(blob.digest))
    document: dict[str, Any] = json.loads(content)
    return document


async def _copy_all(
    blobs: BlobStore, digests: Iterable[Digest], directory: Path, *, documents: bool = True
) -> list[dict[str, Any]]:
    """Copy blobs; return their contents if they are documents."""
    found = []
    for digest in digests:
        blob = await blobs.find(digest)
        if blob is None:
            raise BlobUnknown(str(digest))
        await _copy(blobs, blob, directory / digest.hex)
        if documents:
            found.append(await _document(blobs, blob))
    return found


async def _copy(blobs: BlobStore, blob: StoredBlob, place: Path) -> None:
    if isinstance(blob, StoredFile):
        await asyncio.to_thread(shutil.copyfile, blob.path, place)
        return
    with place.open("wb") as file:
        async for chunk in blobs.stream(blob, 0, blob.size - 1):
            await asyncio.to_thread(file.write, chunk)


def _parts(document: Mapping[str, Any]) -> list[Digest]:
    return _digests([document["config"], *document["layers"]] if "config" in document else [])


def _digests(descriptors: Iterable[Mapping[str, Any]]) -> list[Digest]:
    return [Digest.parse(descriptor["digest"]) for descriptor in descriptors]


def _archive(layout: Path) -> Path:
    """Archive a layout; the same layout gives the same bytes."""
    archive = layout.with_suffix(".tar")
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(layout.rglob("*")):
            member = tar.gettarinfo(path, str(path.relative_to(layout)))
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if path.is_dir() else 0o644
            if path.is_dir():
                tar.addfile(member)
            else:
                with path.open("rb") as content:
                    tar.addfile(member, content)
    return archive
