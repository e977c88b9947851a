"""Which images have a store path: an index in memory of the records of images' closures, for the binary cache.

The key of such a record is an image, and a client of a binary cache asks for a path. An index in the storage would
take a record for each path, and thus hundreds of writes for an image. So each server reads the records once, in the
background of its start, and later only those that its own builds or other servers have added.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache

import structlog

from nixery.builds.image_closure import ImageClosure, ImageClosures
from nixery.caching import LRUCache, SingleFlight
from nixery.closure import STORE_DIRECTORY, PathInfo, StorePath
from nixery.errors import InvalidDigest, NixeryError, TooBusy
from nixery.oci.digest import Digest
from nixery.storage.records import IMAGE_CLOSURES, KINDS, RecordStore

# Images in the index, the newest ones; pairs of a path and an image; and images of one path.
_MOST_IMAGES, _MOST_PAIRS, _MOST_OF_PATH = 5000, 1_000_000, 64

# Records that are read at the same time: in a bucket, each takes a round trip.
_CONCURRENT = 16

# Bytes for closures in memory, and of one store path in them: a client asks for all paths of an image.
_CAPACITY, _SIZE_OF_PATH = 32 * 1024 * 1024, 1024

# Seconds that a request waits for a listing: that at the start reads all records. And after which it is sent again.
_LISTING_TIMEOUT, _RETRY_AFTER = 20.0, 5

_DIGITS = 32

_log = structlog.get_logger("nixery.cache")


@dataclass(frozen=True, slots=True)
class ImageOfPath:
    """An image that has a store path.

    Attributes:
        manifest: the digest of its manifest.
        names: canonical ones that may stand for it.
    """

    manifest: Digest
    names: Sequence[str]


class ServedPaths:
    """Finds the images that have a store path. For one event loop.

    Args:
        closures: of stored images.
        records: of the same storage.
        interval: seconds between two listings of records, in which an image of another server stays unknown.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        closures: ImageClosures,
        records: RecordStore,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = interval
        self._closures = closures
        self._records = records
        self._clock = clock
        # In the order of their addition, the oldest first. The images of a path begin with the newest one.
        self._images: dict[Digest, Sequence[str]] = {}
        self._paths: dict[str, tuple[Digest, ...]] = {}
        self._pairs = 0
        # When the records that were read were written, by key.
        self._read: dict[str, float] = {}
        self._listed_at: float | None = None
        self._listing: SingleFlight[str, None] = SingleFlight()
        self._kept: LRUCache[Digest, ImageClosure] = LRUCache(_CAPACITY)
        closures.observe(self._add)

    async def find(self, digits: str) -> Sequence[ImageOfPath]:
        """Return images that have a path, the newest first, at most 64.

        Args:
            digits: the hash at the beginning of the path's name.

        Raises:
            TooBusy: the records are still being read.
            StorageError: they cannot be listed.
        """
        found = self._known(digits)
        if not found and (self._listed_at is None or self._clock() - self._listed_at >= self._interval):
            await self._wait_for_listing()
            found = self._known(digits)
        return found

    async def info(self, image: Digest, digits: str) -> tuple[PathInfo, int] | None:
        """Return what Nix has registered of a path, and the number of the image's layer that has it, from 1.

        Returns:
            ``None`` if the record of the image was deleted since, or is of an earlier version.

        Raises:
            StorageError: the storage cannot be read.
        """
        closure = self._kept.get(image) or await self._closures.find(image)
        if closure is None:
            self._images.pop(image, None)
            self._read.pop(image.hex, None)
            return None
        self._kept.put(image, closure, len(closure.paths) * _SIZE_OF_PATH)
        return _info(closure, digits)

    async def read_all(self) -> None:
        """Read the records before the first request does; log an error, which that request meets again."""
        try:
            await self._listing.run("", self._list)
        except NixeryError as error:
            _log.warning("cannot list the store paths of images", reason=str(error))

    async def close(self) -> None:
        """End the reading of records."""
        await self._listing.close()

    def _known(self, digits: str) -> Sequence[ImageOfPath]:
        return [
            ImageOfPath(image, self._images[image])
            for image in self._paths.get(digits, ())
            if image in self._images
        ]

    async def _wait_for_listing(self) -> None:
        try:
            await asyncio.wait_for(self._listing.run("", self._list), _LISTING_TIMEOUT)
        except TimeoutError:
            # Not 404: Nix would remember for an hour that the path is missing.
            raise TooBusy(1, len(self._read), _RETRY_AFTER, TooBusy.STORE_PATHS) from None

    async def _list(self) -> None:
        begun = self._clock()
        listed: dict[str, float] = {}
        async with aclosing(self._records.scan(IMAGE_CLOSURES)) as listing:
            async for record in listing:
                listed[record.key] = record.modified
                if len(listed) == KINDS[IMAGE_CLOSURES].most:
                    break  # more than the collector leaves
        self._read = {key: when for key, when in self._read.items() if key in listed}
        new = [key for key, when in listed.items() if self._read.get(key) != when]
        new.sort(key=lambda key: (listed[key], key))
        new = new[-_MOST_IMAGES:]
        for start in range(0, len(new), _CONCURRENT):
            some = [(key, _digest(key)) for key in new[start : start + _CONCURRENT]]
            closures = await asyncio.gather(*(self._find(digest) for _, digest in some))
            for (key, digest), closure in zip(some, closures, strict=True):
                self._read[key] = listed[key]
                if digest is not None and closure is not None:
                    self._add(digest, closure)
        self._listed_at = begun

    async def _find(self, digest: Digest | None) -> ImageClosure | None:
        return None if digest is None else await self._closures.find(digest)

    def _add(self, image: Digest, closure: ImageClosure) -> None:
        self._kept.discard(image)
        self._images.pop(image, None)
        self._images[image] = tuple(closure.names)
        if len(self._images) > _MOST_IMAGES:
            del self._images[next(iter(self._images))]
        for path in closure.paths:
            if not path.nar_hash:
                continue
            digits = path.path[:_DIGITS]
            before = self._paths.pop(digits, ())
            others = (one for one in before if one != image)
            self._paths[digits] = (image, *others)[:_MOST_OF_PATH]
            self._pairs += len(self._paths[digits]) - len(before)
        while self._pairs > _MOST_PAIRS:
            oldest = next(iter(self._paths))
            self._pairs -= len(self._paths.pop(oldest))


def _info(closure: ImageClosure, digits: str) -> tuple[PathInfo, int] | None:
    path = next((path for path in closure.paths if path.path.startswith(f"{digits}-")), None)
    if path is None or not path.nar_hash:
        return None
    try:
        # The record may be a planted one, and its texts are lines of an answer.
        info = PathInfo(
            _store_path(path.path),
            path.nar_hash,
            path.size,
            tuple(sorted(_store_path(closure.paths[at].path) for at in path.references)),
            path.deriver and str(_store_path(path.deriver)),
            path.refers_to_itself,
        )
    except ValueError:
        return None
    return info, path.layer


@lru_cache(4096)
def _store_path(base_name: str) -> StorePath:
    return StorePath.parse(f"{STORE_DIRECTORY}/{base_name}")


def _digest(key: str) -> Digest | None:
    try:
        return Digest.parse(f"sha256:{key}")
    except InvalidDigest:
        return None
