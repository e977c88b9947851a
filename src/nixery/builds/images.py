"""Images for several platforms under one name.

What the server asks for: what a name and a tag stand for.

Having images built before somebody pulls them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nixery.builds.build_cache import BELIEVED
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.events import Build
from nixery.builds.image import Image, ImageIndex
from nixery.builds.pins import Pinned, Pins
from nixery.caching import LRUCache
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
from nixery.sources.source import PackageSource, Pin
from nixery.storage.blobs import BlobStore
from nixery.storage.leases import Leases

# Bytes of indexes kept in memory.
_CAPACITY = 8 * 1024 * 1024

# Seconds for which an index goes without a platform that could not be built.
_WITHOUT = 600.0

_Built = tuple[tuple[Platform, Image], ...]


@dataclass(slots=True)
class _Kept:
    index: ImageIndex
    until: float


class Indexes:
    """Makes indexes out of images, which are built side by side.

    Args:
        builds: where the images come from.
        blobs: where indexes are stored.
        uses: where it is told which are asked for; what is used stays.
        optional: platforms that an index may be without.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        builds: BuildCoordinator,
        blobs: BlobStore,
        uses: Leases,
        optional: frozenset[Platform] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._builds = builds
        self._blobs = blobs
        self._uses = uses
        self._optional = optional
        self._clock = clock
        self._stored: LRUCache[tuple[Digest, ...], _Kept] = LRUCache(_CAPACITY)
        self._incomplete: LRUCache[tuple[Pin, ImageRequest], _Kept] = LRUCache(_CAPACITY)

    async def index(self, requests: Sequence[ImageRequest], pin: Pin) -> ImageIndex:
        """Return the index of requests that differ in their platform, after all of it is stored.

        Raises:
            PlatformFailed: an image that has to be there cannot be had.
            NixeryError: none of them can, for one reason; or as ``BuildCoordinator.image``.
        """
        incomplete = self._incomplete.get((pin, requests[0]))
        if (
            incomplete is not None
            and incomplete.until > self._clock()
            and self._uses.renew(incomplete.index.digests)
        ):
            return incomplete.index
        outcomes = await asyncio.gather(
            *(self._builds.image(request, pin) for request in requests), return_exceptions=True
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
                    raise outcome  # no platform's fault
        self._require(failed, any_built=bool(built))
        index = await self._store(tuple(built))
        if failed:
            size = sum(len(document.content) for document in index.indexes)
            self._incomplete.put((pin, requests[0]), _Kept(index, self._clock() + _WITHOUT), size)
        return index

    def _require(self, failed: Sequence[tuple[Platform, NixeryError]], *, any_built: bool) -> None:
        if failed and not any_built and len({str(error) for _, error in failed}) == 1:
            raise failed[0][1]
        for platform, error in failed:
            if platform not in self._optional or not any_built:
                raise PlatformFailed(str(platform), error) from error

    async def _store(self, built: _Built) -> ImageIndex:
        key = tuple(image.manifest.descriptor.digest for _, image in built)
        kept = self._stored.get(key)
        used = kept is not None and self._uses.renew(kept.index.digests)
        if kept is not None and used and kept.until > self._clock():
            return kept.index
        index = kept.index if kept is not None else _make(built)
        await self._put(index)
        if not used:
            # A claim leads to what is stored, and so comes after it. What was there may have been garbage until now.
            await self._uses.acquire(index.digests)
            await self._put(index)
        size = sum(len(document.content) for document in index.indexes)
        self._stored.put(key, _Kept(index, self._clock() + BELIEVED), size)
        return index

    async def _put(self, index: ImageIndex) -> None:
        for document in index.indexes:
            await self._blobs.put(document.descriptor.digest, document.content)


def _make(built: _Built) -> ImageIndex:
    docker = [(platform.architecture, image.docker_manifest) for platform, image in built]
    docker_manifests = [(architecture, manifest) for architecture, manifest in docker if manifest]
    return ImageIndex(
        index=image_index(
            MediaType.OCI_INDEX, [(platform.architecture, image.manifest) for platform, image in built]
        ),
        docker_index=image_index(MediaType.DOCKER_INDEX, docker_manifests)
        if len(docker_manifests) == len(built)
        else None,
        first=built[0][1],
    )


# How often a build begins anew because the package set was changed under it.
_ATTEMPTS = 3

# The tag of all images of a source without versions.
_LISTED = "latest"


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


def require_few_packages(request: ImageRequest, most: int) -> None:
    """Check how many packages a name asks for.

    Raises:
        InvalidName: they are too many.
    """
    asked_for = request.requested
    if len(asked_for) > most:
        reason = f"it asks for {len(asked_for)} packages, and {most} is the limit (NIXERY_MAX_PACKAGES)"
        raise InvalidName("/".join(asked_for), reason)


class Images:
    """Pins the tag, then finds or builds.

    Args:
        most_packages: that a name may ask for.
    """

    def __init__(self, pins: Pins, builds: BuildCoordinator, indexes: Indexes, most_packages: int) -> None:
        self._pins = pins
        self._builds = builds
        self._indexes = indexes
        self._most_packages = most_packages

    async def get(self, requests: tuple[ImageRequest, ...], tag: str) -> Found:
        """Return the image of a single request, or the index of several ones that differ in their platform.

        Raises:
            InvalidName: it asks for too many packages.
            TagUnknown: the package source has nothing like it.
            SourceUnreachable: it cannot be asked, and never was.
            PackagesUnavailable: with every package that cannot be had.
            PlatformFailed: an index lacks a platform that it has to have.
            BuildError: there is no such image.
            StorageError: it cannot be stored.
            TooBusy: too much is built and waits already.
            ShuttingDown: this was closed before it was there.
        """
        require_few_packages(requests[0], self._most_packages)
        pinned = await self._pins.pin(tag)
        listed = tag if self._pins.selects(tag) else _LISTED
        for _ in range(_ATTEMPTS):
            try:
                if len(requests) == 1:
                    return Found(await self._builds.image(requests[0], pinned.pin), pinned, listed)
                return Found(await self._indexes.index(requests, pinned.pin), pinned, listed)
            except PackageSetChanged:
                pinned = await self._pins.replace(tag, pinned.pin)
        raise PackageSetChanged

    async def close(self) -> None:
        """End all builds."""
        await asyncio.gather(self._builds.close(), self._pins.close())


class Prebuilder:
    """Begins builds that nobody waits for.

    Args:
        pins: what tags stand for.
        source: where packages are from.
        builds: where builds are begun.
        most_packages: that a name may ask for.
    """

    def __init__(
        self, pins: Pins, source: PackageSource, builds: BuildCoordinator, most_packages: int
    ) -> None:
        self._most_packages = most_packages
        self._pins = pins
        self._source = source
        self._builds = builds

    async def begin(self, requests: Sequence[ImageRequest], tag: str) -> list[Build]:
        """Begin a build for each request, or join those that go on.

        Raises:
            InvalidName: it asks for too many packages.
            TagUnknown: the package source has nothing like it.
            SourceUnreachable: it cannot be asked.
            StorageError: the pin cannot be kept.
            TooBusy: too many tags are looked up already, or too much is built and waits. What was begun before goes on, and is joined by
                who asks again.
        """
        require_few_packages(requests[0], self._most_packages)
        pin = (await self._pins.pin(tag)).pin
        try:
            await self._source.confirm(pin)
        except PackageSetChanged:
            pin = (await self._pins.replace(tag, pin)).pin
        return [await self._builds.begin(request, pin) for request in requests]
