"""Images by name and tag, for one platform or for several: the entry point of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nixery.builds.build_cache import VERIFIED_TTL
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.events import Build
from nixery.builds.image import Image, ImageIndex
from nixery.builds.pins import Pinned, Pins
from nixery.caching import TTLCache
from nixery.errors import (
    BuildError,
    InvalidName,
    NixeryError,
    PackageSetChanged,
    PackagesUnavailable,
    PlatformFailed,
)
from nixery.image.name import ImageRequest
from nixery.image.platform import Platform
from nixery.oci.digest import Digest
from nixery.oci.documents import MediaType, image_index
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore
from nixery.storage.leases import Leases

# Attempts at an image whose package set changes while it is built.
_ATTEMPTS = 3

# The tag of all images of a source without versions.
_LISTED = "latest"

# Bytes of indexes in memory.
_CAPACITY = 8 * 1024 * 1024

# Seconds for which an index omits a platform whose build failed.
_INCOMPLETE_TTL = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """The result of resolving a name and a tag.

    Attributes:
        image: for one platform or for several.
        pinned: the state of the package source that it was made from.
        tag: under which it is listed. For a source without versions it is always the same, since clients can
            make tags up.
    """

    image: Image | ImageIndex
    pinned: Pinned
    tag: str


class Images:
    """Pins the tag of an image, then finds or builds it.

    Args:
        pins: of tags.
        builds: of images.
        indexes: of images for several platforms.
        most_packages: the most that a name may ask for.
    """

    def __init__(self, pins: Pins, builds: BuildCoordinator, indexes: Indexes, most_packages: int) -> None:
        self._pins = pins
        self._builds = builds
        self._indexes = indexes
        self._most_packages = most_packages

    async def get(self, requests: tuple[ImageRequest, ...], tag: str, *, may_build: bool = True) -> Found:
        """Return the image of a single request, or the index of several ones that differ in their platform.

        Without ``may_build``, no build is started or joined.

        Raises:
            InvalidName: it asks for too many packages.
            BuildNotAllowed: the image is not stored, and ``may_build`` is false.
            TagUnknown: the package source has no such tag.
            SourceUnreachable: the source cannot be asked, and no earlier pin is known.
            PackagesUnavailable: with every unavailable package.
            PlatformFailed: a required platform of an index cannot be built.
            BuildError: the image cannot be built.
            StorageError: the image cannot be stored.
            TooBusy: the queue is full.
            ShuttingDown: this was closed before the build ended.
        """
        require_package_count(requests[0], self._most_packages)
        pinned = await self._pins.pin(tag)
        listed = tag if self._pins.selects(tag) else _LISTED
        for _ in range(_ATTEMPTS):
            try:
                if len(requests) == 1:
                    image = await self._builds.image(requests[0], pinned.pin, tag, may_build=may_build)
                    return Found(image, pinned, listed)
                index = await self._indexes.index(requests, pinned.pin, tag, may_build=may_build)
                return Found(index, pinned, listed)
            except PackageSetChanged:
                pinned = await self._pins.replace(tag, pinned.pin)
        raise PackageSetChanged

    async def begin(self, requests: Sequence[ImageRequest], tag: str) -> list[Build]:
        """Start a build for each request, or join its running build, without waiting for the images.

        Raises:
            InvalidName: it asks for too many packages.
            TagUnknown: the package source has no such tag.
            SourceUnreachable: the source cannot be asked.
            StorageError: the pin cannot be stored.
            TooBusy: the queue for tags or for builds is full. Builds that were started continue, and a retry
                joins them.
        """
        require_package_count(requests[0], self._most_packages)
        pin = await self._pins.confirmed(tag)
        return [await self._builds.begin(request, pin, tag) for request in requests]

    async def close(self) -> None:
        """End all builds."""
        await asyncio.gather(self._builds.close(), self._pins.close())


def require_package_count(request: ImageRequest, most: int) -> None:
    """Check the number of packages that a client named.

    Raises:
        InvalidName: it exceeds the limit.
    """
    asked_for = request.requested
    if len(asked_for) > most:
        limit = f"{most} is the limit (NIXERY_MAX_PACKAGES)"
        raise InvalidName("/".join(asked_for), f"it asks for {len(asked_for)} packages, and {limit}")


class Indexes:
    """Builds the images of an index at the same time, and stores the index.

    Args:
        builds: of the images.
        blobs: stores the indexes.
        leases: leases of the indexes.
        optional: platforms that an index may omit.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        builds: BuildCoordinator,
        blobs: BlobStore,
        leases: Leases,
        optional: frozenset[Platform] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._builds = builds
        self._blobs = blobs
        self._leases = leases
        self._optional = optional
        self._verified: TTLCache[tuple[Digest, ...], ImageIndex] = TTLCache(_CAPACITY, clock)
        self._incomplete: TTLCache[tuple[Pin, ImageRequest], ImageIndex] = TTLCache(_CAPACITY, clock)

    async def index(
        self, requests: Sequence[ImageRequest], pin: Pin, tag: str | None = None, *, may_build: bool = True
    ) -> ImageIndex:
        """Return the index of requests that differ in their platform, once all of it is stored.

        Raises:
            PlatformFailed: a required platform cannot be built.
            NixeryError: all platforms failed for the same reason; or as ``BuildCoordinator.image``.
        """
        incomplete = self._incomplete.get((pin, requests[0]))
        if incomplete is not None and self._leases.renew(incomplete.digests):
            return incomplete
        outcomes = await asyncio.gather(
            *(self._builds.image(request, pin, tag, may_build=may_build) for request in requests),
            return_exceptions=True,
        )
        built: list[tuple[Platform, Image]] = []
        failed: list[tuple[Platform, BuildError | PackagesUnavailable]] = []
        for request, outcome in zip(requests, outcomes, strict=True):
            match outcome:
                case Image():
                    built.append((request.platform, outcome))
                case BuildError() | PackagesUnavailable() if not isinstance(outcome, PackageSetChanged):
                    failed.append((request.platform, outcome))
                case _:
                    raise outcome  # not specific to a platform
        self._require(failed, any_built=bool(built))
        index = await self._store(built)
        if failed:
            self._incomplete.put((pin, requests[0]), index, _size(index), _INCOMPLETE_TTL)
        return index

    def _require(self, failed: Sequence[tuple[Platform, NixeryError]], *, any_built: bool) -> None:
        if failed and not any_built and len({str(error) for _, error in failed}) == 1:
            raise failed[0][1]
        for platform, error in failed:
            if platform not in self._optional or not any_built:
                raise PlatformFailed(str(platform), error) from error

    async def _store(self, built: Sequence[tuple[Platform, Image]]) -> ImageIndex:
        key = tuple(image.manifest.descriptor.digest for _, image in built)
        index = self._verified.get(key)
        if index is not None and self._leases.renew(index.digests):
            return index
        index = _index(built)
        await self._put(index)
        if not self._leases.renew(index.digests):
            # A lease is of stored documents, so it comes after the first write. A collector may have deleted
            # documents that were already stored, so the second write comes after it.
            await self._leases.acquire(index.digests)
            await self._put(index)
        self._verified.put(key, index, _size(index), VERIFIED_TTL)
        return index

    async def _put(self, index: ImageIndex) -> None:
        for document in index.indexes:
            await self._blobs.put(document.descriptor.digest, document.content)


def _index(built: Sequence[tuple[Platform, Image]]) -> ImageIndex:
    manifests = [(platform.architecture, image.manifest) for platform, image in built]
    docker = [(platform.architecture, image.docker_manifest) for platform, image in built]
    docker_manifests = [(architecture, manifest) for architecture, manifest in docker if manifest]
    return ImageIndex(
        index=image_index(MediaType.OCI_INDEX, manifests),
        docker_index=image_index(MediaType.DOCKER_INDEX, docker_manifests)
        if len(docker_manifests) == len(built)
        else None,
        first=built[0][1],
    )


def _size(index: ImageIndex) -> int:
    return sum(len(document.content) for document in index.indexes)
