"""``/v2/<name>/manifests/<reference>``."""

from __future__ import annotations

import json

from nixery.errors import ManifestUnknown
from nixery.image.reference import Tag, parse_reference
from nixery.image.request import parse_image_name, validate_name
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.oci.descriptor import Descriptor, MediaType
from nixery.oci.digest import Digest
from nixery.oci.image import Document
from nixery.pipeline.image import Image
from nixery.pipeline.images import Images
from nixery.server.conditions import matches
from nixery.server.requests import Request
from nixery.server.responses import IMMUTABLE, BytesResponse, NotModified, Response
from nixery.storage.catalogue import Catalogue
from nixery.storage.store import BlobStore

# Clients refuse larger manifests, so whatever is larger is none.
_LARGEST_MANIFEST = 4 * 1024 * 1024

# Bytes of manifests that are kept in memory.
_CAPACITY = 32 * 1024 * 1024

_MANIFEST_TYPES = (MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST)


class Manifests:
    """By tag they are built, by digest they are looked up."""

    def __init__(self, images: Images, blobs: BlobStore, catalogue: Catalogue) -> None:
        self._images = images
        self._blobs = blobs
        self._catalogue = catalogue
        self._documents: LeastRecentlyUsed[Digest, Document] = LeastRecentlyUsed(_CAPACITY)

    async def get(self, request: Request, name: str, reference: str) -> Response:
        """Answer GET and HEAD: containerd and Docker begin with a HEAD of the tag and rely on its digest.

        Raises:
            NixeryError: as the image builder does, or because there is no such manifest.
        """
        match parse_reference(reference):
            case Digest() as digest:
                validate_name(name)
                document = self._documents.get(digest) or await self._stored(digest)
                return _answer(request, document, {"Cache-Control": IMMUTABLE})
            case Tag(is_derived_from_digest=True) as tag:
                validate_name(name)
                raise ManifestUnknown(str(tag), "does not exist: nothing is attached to that image")
            case Tag() as tag:
                image = await self._images.image(parse_image_name(name), tag.name)
                await self._catalogue.record_tag(name, tag.name, image.manifest.descriptor.digest)
                # Caches between us and the client have to keep the two families apart.
                return _answer(
                    request, _negotiate(request.headers.get("accept", ""), image), {"Vary": "Accept"}
                )

    async def _stored(self, digest: Digest) -> Document:
        blob = await self._blobs.find(digest)
        if blob is not None and blob.size <= _LARGEST_MANIFEST:
            content = await self._blobs.read(blob)
            media_type = _media_type(content)
            if media_type is not None and Digest.of(content) == digest:
                document = Document(Descriptor(media_type, digest, len(content)), content)
                self._documents.put(digest, document, len(content))
                return document
        raise ManifestUnknown(str(digest), "is not stored here; pull the image by its tag to have it built")


def _negotiate(accept: str, image: Image) -> Document:
    """Choose the family of media types; whoever asks for nothing that we have gets OCI's, never a 406."""
    accepted = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if MediaType.DOCKER_MANIFEST in accepted and not any(
        t.startswith("application/vnd.oci.") for t in accepted
    ):
        return image.docker_manifest
    return image.manifest


def _media_type(content: bytes) -> MediaType | None:
    # Configs and small layers are stored in the same place.
    try:
        document = json.loads(content)
    except ValueError:
        return None
    named = document.get("mediaType") if isinstance(document, dict) else None
    return next((media_type for media_type in _MANIFEST_TYPES if media_type == named), None)


def _answer(request: Request, document: Document, more: dict[str, str]) -> Response:
    digest = str(document.descriptor.digest)
    etag = f'"{digest}"'
    headers = {
        "Content-Type": document.descriptor.media_type.value,
        "Docker-Content-Digest": digest,
        "ETag": etag,
        **more,
    }
    return NotModified(headers) if matches(request, etag) else BytesResponse(200, document.content, headers)
