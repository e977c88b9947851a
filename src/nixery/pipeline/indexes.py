"""Images for several platforms under one name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nixery.errors import BuildError, NixeryError, PackageSetChanged, PackagesUnavailable, PlatformFailed
from nixery.image.platform import Platform
from nixery.image.request import ImageRequest
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.oci.descriptor import MediaType
from nixery.oci.digest import Digest
from nixery.oci.index import image_index
from nixery.pipeline.build_cache import BELIEVED
from nixery.pipeline.image import Image, ImageIndex
from nixery.pipeline.shared_builds import SharedBuilds
from nixery.sources.source import Pin
from nixery.storage.store import BlobStore
from nixery.storage.uses import Uses

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
        builds: SharedBuilds,
        blobs: BlobStore,
        uses: Uses,
        optional: frozenset[Platform] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._builds = builds
        self._blobs = blobs
        self._uses = uses
        self._optional = optional
        self._clock = clock
        self._stored: LeastRecentlyUsed[tuple[Digest, ...], _Kept] = LeastRecentlyUsed(_CAPACITY)
        self._incomplete: LeastRecentlyUsed[tuple[Pin, ImageRequest], _Kept] = LeastRecentlyUsed(_CAPACITY)

    async def index(self, requests: Sequence[ImageRequest], pin: Pin) -> ImageIndex:
        """Return the index of requests that differ in their platform, after all of it is stored.

        Raises:
            PlatformFailed: an image that has to be there cannot be had.
            NixeryError: none of them can, for one reason; or as ``SharedBuilds.image``.
        """
        incomplete = self._incomplete.get((pin, requests[0]))
        if (
            incomplete is not None
            and incomplete.until > self._clock()
            and self._uses.note(incomplete.index.digests)
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
        used = kept is not None and self._uses.note(kept.index.digests)
        if kept is not None and used and kept.until > self._clock():
            return kept.index
        index = kept.index if kept is not None else _make(built)
        await self._put(index)
        if not used:
            # A claim leads to what is stored, and so comes after it. What was there may have been garbage until now.
            await self._uses.claim(index.digests)
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
