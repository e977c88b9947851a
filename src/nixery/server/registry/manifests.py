"""``/v2/<name>/manifests/<reference>``."""

from __future__ import annotations

import json

from nixery.errors import ManifestUnknown
from nixery.image.reference import Tag, parse_reference
from nixery.image.request import parse_image_name, validate_name
from nixery.oci.descriptor import MediaType
from nixery.oci.digest import Digest
from nixery.pipeline.image_builder import ImageBuilder
from nixery.server.responses import BytesResponse
from nixery.storage.store import BlobStore

# Clients refuse larger manifests, so whatever is larger is none.
_LARGEST_MANIFEST = 4 * 1024 * 1024


class Manifests:
    """By tag they are built, by digest they are looked up."""

    def __init__(self, builder: ImageBuilder, blobs: BlobStore) -> None:
        self._builder = builder
        self._blobs = blobs

    async def get(self, name: str, reference: str) -> BytesResponse:
        """Answer GET and HEAD: containerd and Docker begin with a HEAD of the tag and rely on its digest.

        Raises:
            NixeryError: as the image builder does, or because there is no such manifest.
        """
        match parse_reference(reference):
            case Digest() as digest:
                validate_name(name)
                return _answer(digest, await self._stored(digest))
            case Tag(is_derived_from_digest=True) as tag:
                validate_name(name)
                raise ManifestUnknown(str(tag), "does not exist: nothing is attached to that image")
            case Tag():
                manifest = await self._builder.manifest(parse_image_name(name))
                return _answer(manifest.descriptor.digest, manifest.content)

    async def _stored(self, digest: Digest) -> bytes:
        blob = await self._blobs.find(digest)
        if blob is not None and blob.size <= _LARGEST_MANIFEST:
            content = await self._blobs.read(blob)
            if _is_manifest(content) and Digest.of(content) == digest:
                return content
        raise ManifestUnknown(str(digest), "is not stored here; pull the image by its tag to have it built")


def _is_manifest(content: bytes) -> bool:
    # Configs and small layers are stored in the same place.
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("mediaType") == MediaType.OCI_MANIFEST


def _answer(digest: Digest, content: bytes) -> BytesResponse:
    headers = {
        "Content-Type": MediaType.OCI_MANIFEST.value,
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
    }
    return BytesResponse(200, content, headers)
