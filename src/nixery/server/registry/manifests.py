"""``/v2/<name>/manifests/<reference>``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from nixery.builds.image import Image, ImageIndex
from nixery.builds.images import Images
from nixery.builds.slots import Slots
from nixery.caching import LRUCache
from nixery.errors import ManifestUnknown, TooBusy
from nixery.image.name import Tag, parse_reference, requests_for, validate_name
from nixery.image.platform import Platform
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, Document, MediaType, referenced_blobs
from nixery.server.http import IMMUTABLE, BytesResponse, NotModified, Request, Response, matches
from nixery.storage.catalogue import Catalogue
from nixery.storage.presence import are_there
from nixery.storage.store import BlobStore
from nixery.storage.uses import Leases

# Bytes of manifests that are kept in memory.
_CAPACITY = 32 * 1024 * 1024

_MANIFEST_TYPES = (
    MediaType.OCI_MANIFEST,
    MediaType.OCI_INDEX,
    MediaType.DOCKER_MANIFEST,
    MediaType.DOCKER_INDEX,
)

# Manifests that are read from the storage at once; and the queue for that, which exceeds the default number of
# connections. Any client can ask for a layer or a config as a manifest, and the server has to read all of it to
# refuse: without a limit, each connection would hold a document in memory.
_READS, _WAITING = 16, 2048

# Bytes from which on a document is parsed off the event loop.
_LARGE = 64 * 1024

# The state of the package source that an image was made from.
REVISION = "Nixery-Revision"

# Characters of ``Accept`` that are parsed: clients that list all types they know need a tenth of them.
_LONGEST_ACCEPT = 8192

_ANYTHING = frozenset({"*/*", "application/*"})


class Manifests:
    """By tag they are built, by digest they are looked up."""

    def __init__(
        self,
        images: Images,
        blobs: BlobStore,
        uses: Leases,
        catalogue: Catalogue,
        platforms: Sequence[Platform],
    ) -> None:
        self._images = images
        self._platforms = platforms
        self._blobs = blobs
        self._uses = uses
        self._catalogue = catalogue
        self._documents: LRUCache[Digest, Document] = LRUCache(_CAPACITY)
        self._reads = Slots(_READS, _WAITING, busy=TooBusy.IMAGES)

    async def get(self, request: Request, name: str, reference: str) -> Response:
        """Answer GET and HEAD: containerd and Docker begin with a HEAD of the tag and rely on its digest.

        Raises:
            NixeryError: as the image builder does, or because there is no such manifest.
        """
        match parse_reference(reference):
            case Digest() as digest:
                validate_name(name)
                document = self._kept(digest) or await self._stored(digest)
                return _answer(request, document, {"Cache-Control": IMMUTABLE})
            case Tag(is_derived_from_digest=True) as tag:
                validate_name(name)
                raise ManifestUnknown(str(tag), "does not exist: nothing is attached to that image")
            case Tag() as tag:
                found = await self._images.get(requests_for(name, self._platforms), tag.name)
                image = found.image
                document = image.index if isinstance(image, ImageIndex) else image.manifest
                await self._catalogue.record_tag(name, found.tag, document.descriptor.digest)
                # Caches between us and the client have to keep the two families apart.
                headers = {"Vary": "Accept", REVISION: found.pinned.pin.revision}
                if found.pinned.warning:
                    # RFC 7234, 5.5.7; containerd shows it.
                    headers["Warning"] = f'299 - "{_quotable(found.pinned.warning)}"'
                return _answer(request, _negotiate(request.headers.get("accept", ""), image), headers)

    def _kept(self, digest: Digest) -> Document | None:
        return self._documents.get(digest) if self._uses.note([digest]) else None

    async def _stored(self, digest: Digest) -> Document:
        async with self._reads.slot():
            # Another request may have read it meanwhile.
            kept = self._kept(digest)
            document = None if kept is not None else await self._read(digest)
        if kept is not None:
            return kept
        if document is not None:
            # Whoever gets a manifest comes for what is in it. So it is claimed, and then everything has to be there.
            parts = referenced_blobs(document.content)
            await self._uses.claim([digest], (part for part, _ in parts))
            if await are_there(self._blobs, (*parts, (digest, document.descriptor.size))):
                self._documents.put(digest, document, len(document.content))
                return document
        raise ManifestUnknown(str(digest), "is not stored here; pull the image by its tag to have it built")

    async def _read(self, digest: Digest) -> Document | None:
        blob = await self._blobs.find(digest)
        if blob is None:
            return None
        content = await self._blobs.read(blob)
        if content is None:
            return None
        if len(content) < _LARGE:
            media_type = _media_type(content)
        else:
            media_type = await asyncio.to_thread(_media_type, content)
        if media_type is None:
            return None
        return Document(Descriptor(media_type, digest, len(content)), content)


def _negotiate(accept: str, found: Image | ImageIndex) -> Document:
    """Choose the family of media types, and between an index and the manifest of its first platform.

    Whoever accepts nothing that we have gets OCI's manifest, never a 406. So does one who wants Docker's, if the layers are
    compressed in a way that only OCI has a name for.
    """
    accepted = {part.partition(";")[0].strip().lower() for part in accept[:_LONGEST_ACCEPT].split(",")}
    knows_docker = not accepted.isdisjoint((MediaType.DOCKER_MANIFEST, MediaType.DOCKER_INDEX))
    wants_docker = knows_docker and not any(t.startswith("application/vnd.oci.") for t in accepted)
    if isinstance(found, ImageIndex):
        index = (found.docker_index if wants_docker else None) or found.index
        # Docker's own media types come from clients that name all they know, and then "*/*" for errors.
        anything = not knows_docker and not accepted.isdisjoint(_ANYTHING)
        if anything or index.descriptor.media_type in accepted:
            return index
        found = found.first
    return (found.docker_manifest if wants_docker else None) or found.manifest


def _quotable(text: str) -> str:
    """Return what may stand between quotation marks in a header field."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else " " for c in text)


def _media_type(content: bytes) -> MediaType | None:
    # Configs and small layers are stored in the same place.
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
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
