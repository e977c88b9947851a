"""Finished images, by what they were made from: a second request for one asks Nix nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from nixery.builds.image import Image
from nixery.caching import CacheCounts, LRUCache
from nixery.errors import InvalidDigest
from nixery.image.name import ImageRequest
from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Descriptor,
    Document,
    MediaType,
    canonical_json,
    is_image_manifest,
    referenced_blobs,
)
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, are_still_there, are_there
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore

IMAGES = "images"

# Bytes of manifests kept in memory; one is about 10 to 20 KB.
_CAPACITY = 64 * 1024 * 1024

# Seconds for which an image that was found whole is believed to be so. Looking for every one of its blobs takes longer than
# answering a request.
BELIEVED = 1.0


class ImageRecord(BaseModel):
    """What is remembered of a stored image, by what it was made from: the digests of its manifests."""

    manifest: str
    docker_manifest: str | None = None

    @property
    def documents(self) -> tuple[Digest, ...]:
        """The manifests.

        Raises:
            InvalidDigest: it is none of ours.
        """
        return tuple(
            Digest.parse(digest) for digest in (self.docker_manifest, self.manifest) if digest is not None
        )


@dataclass(slots=True)
class _Recent:
    image: Image
    parts: tuple[tuple[Digest, int], ...]
    checked: float


class BuildCache:
    """Images in memory, and behind that in the store, which all servers share.

    Args:
        records: what was made from what.
        blobs: the images themselves; one that has lost a part is none.
        uses: where it is told what is found; what is used stays.
        identity: of everything besides the package set and the request that has a say in what an image becomes: this program,
            the packer, the popularity data, the number of layers.
        clock: seconds; only differences matter.

    Attributes:
        counts: of what was asked for; what is looked for in memory and then in the store counts once.
    """

    def __init__(
        self,
        records: RecordStore,
        blobs: BlobStore,
        uses: Leases,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._uses = uses
        self._identity = identity
        self._clock = clock
        self.counts = CacheCounts()
        self._recent: LRUCache[tuple[Pin, ImageRequest], _Recent] = LRUCache(_CAPACITY)

    async def find_recent(self, pin: Pin, request: ImageRequest) -> Image | None:
        """Look in memory only. Nearly always that is all a request costs."""
        recent = self._recent.get((pin, request))
        if recent is None:
            return None
        if self._clock() - recent.checked > BELIEVED:
            if not self._uses.renew(recent.image.digests) or not await are_still_there(
                self._blobs, recent.parts
            ):
                self._recent.discard((pin, request))
                return None
            recent.checked = self._clock()
        self.counts.hits += 1
        return recent.image

    async def find(self, pin: Pin, request: ImageRequest) -> Image | None:
        """Look in the store.

        Raises:
            StorageError: it cannot be asked.
        """
        image = await self._stored(pin, request)
        if image is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return image

    async def _stored(self, pin: Pin, request: ImageRequest) -> Image | None:
        content = await self._records.get(IMAGES, self._key(pin, request))
        if content is None:
            return None
        try:
            record = ImageRecord.model_validate_json(content)
            manifest = await self._document(MediaType.OCI_MANIFEST, Digest.parse(record.manifest))
            named = record.docker_manifest
            docker = (
                await self._document(MediaType.DOCKER_MANIFEST, Digest.parse(named))
                if named is not None
                else None
            )
        except (ValidationError, InvalidDigest):
            return None  # torn: the build writes it anew
        if manifest is None or (docker is None and named is not None):
            return None
        image = Image(manifest, docker)
        if (
            docker is not None
            and referenced_blobs(docker.content)[0] != referenced_blobs(manifest.content)[0]
        ):
            return None  # two images
        parts = image.parts
        # First the claim, then the look: afterwards nobody deletes what was seen.
        await self._uses.acquire(image.digests, (digest for digest, _ in parts))
        if not await are_there(self._blobs, parts):
            return None
        self._remember(pin, request, image, parts)
        return image

    async def add(self, pin: Pin, request: ImageRequest, image: Image) -> None:
        """Remember an image that is stored as a whole.

        Raises:
            StorageError: the record cannot be written.
        """
        record = ImageRecord(
            manifest=str(image.manifest.descriptor.digest),
            docker_manifest=str(image.docker_manifest.descriptor.digest) if image.docker_manifest else None,
        )
        await self._records.put(IMAGES, self._key(pin, request), record.model_dump_json().encode())
        self._remember(pin, request, image, image.parts)

    def _remember(
        self, pin: Pin, request: ImageRequest, image: Image, parts: tuple[tuple[Digest, int], ...]
    ) -> None:
        size = sum(len(document.content) for document in image.manifests)
        self._recent.put((pin, request), _Recent(image, parts, self._clock()), size)

    def _key(self, pin: Pin, request: ImageRequest) -> str:
        # A JSON array keeps its elements apart, whatever is in them.
        made_from = [
            self._identity,
            pin.source,
            pin.identity,
            # The image tells them, and they may differ for the same content: changes in a working tree, before and after the commit.
            pin.revision,
            pin.url,
            pin.created,
            request.platform.nix_system,
            request.shell,
            request.packages,
            request.optional_packages,
            request.requested,
        ]
        return hashlib.sha256(canonical_json(made_from)).hexdigest()

    async def _document(self, media_type: MediaType, digest: Digest) -> Document | None:
        blob = await self._blobs.find(digest)
        if blob is None:
            return None
        content = await self._blobs.read(blob)
        # Others may have written the record: check that the digest in it is of the expected kind.
        if content is None or not is_image_manifest(content, media_type):
            return None
        return Document(Descriptor(media_type, digest, len(content)), content)
