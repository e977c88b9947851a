"""A cache of finished images, keyed by everything that determines them: a repeated request starts no process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from pydantic import BaseModel, ValidationError

from nixery.builds.image import Image
from nixery.caching import CacheCounts, LRUCache, TTLCache
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
from nixery.storage.records import IMAGES, RecordStore

# Seconds for which a check that a cached image's blobs exist is valid; the check takes longer than a cached
# response.
VERIFIED_TTL = 1.0

# Bytes of manifests in memory; one has about 10 to 20 KB. And of those that were verified a moment ago, which
# share these objects as long as the first cache has them.
_CAPACITY = 56 * 1024 * 1024
_VERIFIED_CAPACITY = 8 * 1024 * 1024

_Key = tuple[Pin, ImageRequest]
_Parts = tuple[tuple[Digest, int], ...]


class ImageRecord(BaseModel):
    """The digests of a stored image's manifests."""

    manifest: str
    docker_manifest: str | None = None

    @property
    def documents(self) -> tuple[Digest, ...]:
        """The digests of the manifests.

        Raises:
            InvalidDigest: the record has an invalid digest.
        """
        return tuple(
            Digest.parse(digest) for digest in (self.docker_manifest, self.manifest) if digest is not None
        )


class BuildCache:
    """Finished images: in memory, and in records that all servers on a storage share.

    Args:
        records: map the key of an image to its manifests.
        blobs: of the images. An image with a lost blob is not found.
        leases: leases of the images that are found.
        identity: of everything besides the package set and the request that determines an image: this
            program, the packer, the popularity data, the number of layers, the rule for dates.
        clock: seconds; only differences matter.
        reproducible: whether two builds of an image have the same digest.

    Attributes:
        counts: of look-ups; one in memory and then in the storage counts once.
    """

    def __init__(
        self,
        records: RecordStore,
        blobs: BlobStore,
        leases: Leases,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        reproducible: bool = True,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._leases = leases
        self._identity = identity
        self._reproducible = reproducible
        self.counts = CacheCounts()
        self._recent: LRUCache[_Key, tuple[Image, _Parts]] = LRUCache(_CAPACITY)
        self._verified: TTLCache[_Key, Image] = TTLCache(_VERIFIED_CAPACITY, clock)

    async def find_recent(self, pin: Pin, request: ImageRequest) -> Image | None:
        """Look in memory only, which answers nearly all requests."""
        key = (pin, request)
        image = self._verified.get(key)
        if image is None:
            recent = self._recent.get(key)
            if recent is None:
                return None
            image, parts = recent
            if not self._leases.renew(image.digests) or not await are_still_there(self._blobs, parts):
                self._recent.discard(key)
                return None
            self._verified.put(key, image, _size(image), VERIFIED_TTL)
        self.counts.hits += 1
        return image

    async def find(self, pin: Pin, request: ImageRequest) -> Image | None:
        """Look in the storage.

        Raises:
            StorageError: it cannot be read.
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
            return None  # torn: the build overwrites it
        if manifest is None or (docker is None and named is not None):
            return None
        image = Image(manifest, docker)
        if (
            docker is not None
            and referenced_blobs(docker.content)[0] != referenced_blobs(manifest.content)[0]
        ):
            return None  # manifests of two images
        parts = image.parts
        # The lease first: from then on, no collector deletes the blobs of the image.
        await self._leases.acquire(image.digests, (digest for digest, _ in parts))
        if not await are_there(self._blobs, parts):
            return None
        self._remember((pin, request), image, parts)
        return image

    async def add(self, pin: Pin, request: ImageRequest, image: Image) -> Image:
        """Record an image all of whose parts are stored.

        Returns:
            The image that is the answer from now on: another server may have recorded one with another date.

        Raises:
            StorageError: the record cannot be read or written.
        """
        recorded = None if self._reproducible else await self._stored(pin, request)
        if recorded is not None:
            return recorded
        record = ImageRecord(
            manifest=str(image.manifest.descriptor.digest),
            docker_manifest=str(image.docker_manifest.descriptor.digest) if image.docker_manifest else None,
        )
        await self._records.put(IMAGES, self._key(pin, request), record.model_dump_json().encode())
        self._remember((pin, request), image, image.parts)
        return image

    def _remember(self, key: _Key, image: Image, parts: _Parts) -> None:
        self._recent.put(key, (image, parts), _size(image))
        self._verified.put(key, image, _size(image), VERIFIED_TTL)

    def _key(self, pin: Pin, request: ImageRequest) -> str:
        # A JSON array, so that elements cannot run into each other.
        made_from = [
            self._identity,
            pin.source,
            pin.identity,
            # The image contains these, and they may differ for the same content: a change in a working tree,
            # before and after its commit.
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
        # The record is not trusted: its digest may be that of any blob.
        if content is None or not is_image_manifest(content, media_type):
            return None
        return Document(Descriptor(media_type, digest, len(content)), content)


def _size(image: Image) -> int:
    return sum(len(document.content) for document in image.manifests)
