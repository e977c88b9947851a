"""Descriptions of stored images for people: packages, layers, config, and images that share layers. Builds nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from nixery.builds.build_cache import BuildCache
from nixery.builds.evaluator import Evaluator
from nixery.builds.history import BuildHistory, BuildReport
from nixery.builds.image import PACKAGES
from nixery.builds.image_closure import ImageClosure, ImageClosures
from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.errors import InvalidDigest, TooBusy
from nixery.image.name import ImageRequest
from nixery.nix.packages import Package
from nixery.oci.digest import Digest
from nixery.plain_text import shortened
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore
from nixery.storage.records import CheckedDict, CheckedList

# Recently built images that an image is compared with.
_COMPARED = 30

# Images that are described at once, and that wait; describing one reads up to as many manifests as above.
_AT_ONCE, _QUEUE = 4, 64

# Image pages that have store paths of images in memory at once, and waiting ones: those of an image take up to 30 MB.
_WITH_CLOSURES, _PAGES = 2, 64

# Of a package: licences, characters of its name and of its version, and of its description.
_LICENCES, _NAME, _DESCRIPTION = 16, 100, 500

# Of an image: packages, and characters of their licences and descriptions. A list may stand for thousands,
# and the server writes all of them for each view of the image.
_PACKAGES, _TEXTS = 2000, 256 * 1024


# Layers of an image; no container engine takes as many. A record may lead to any manifest in the storage.
_LAYERS = 1000


class _Descriptor(BaseModel):
    digest: str
    size: int


class _Manifest(BaseModel):
    config: _Descriptor
    layers: Annotated[CheckedList[_Descriptor], Field(max_length=_LAYERS)]
    annotations: CheckedDict[str] = {}


class _History(BaseModel):
    comment: str = ""


class _Config(BaseModel):
    config: dict[str, Any]
    history: Annotated[CheckedList[_History], Field(max_length=_LAYERS)]


Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DescribedLayer:
    """A layer.

    Attributes:
        size: compressed, in bytes.
        packages: names of its store paths.
        shared: number of recently built images that have it, too.
    """

    digest: str
    size: int
    packages: tuple[str, ...]
    shared: int = 0


@dataclass(frozen=True, slots=True)
class DescribedPackage:
    """A package of an image; licences and description may be unknown, and then are empty.

    Attributes:
        component: of the image's name, which selected it; empty if that is unknown.
    """

    name: str
    version: str
    licences: tuple[str, ...]
    description: str
    component: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """Layers that an image shares with another one: their number, and their size in bytes."""

    build: BuildReport
    layers: int
    size: int


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """An image for one platform.

    Attributes:
        packages: in order; of more than 2,000, the first ones.
        config: how its containers start, as in the image specification.
        shared: recently built images that share layers with it, the most similar first.
        compared: number of recently built images that it was compared with.
    """

    platform: str
    digest: str
    packages: tuple[DescribedPackage, ...]
    layers: tuple[DescribedLayer, ...]
    config: Mapping[str, Any]
    annotations: Mapping[str, str]
    shared: tuple[Shared, ...]
    compared: int = 0

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)


class ImageDescriptions:
    """Describes images.

    Args:
        pins: of tags.
        cache: of finished images; ``None`` to find none.
        evaluator: has their packages.
        blobs: of the images.
        history: of recent builds.
        closures: of stored images.
    """

    def __init__(
        self,
        pins: Pins,
        cache: BuildCache | None,
        evaluator: Evaluator,
        blobs: BlobStore,
        history: BuildHistory,
        closures: ImageClosures,
    ) -> None:
        self._pins = pins
        self._cache = cache
        self._evaluator = evaluator
        self._blobs = blobs
        self._history = history
        self._closures = closures
        # A request may cost the server a thousand times what it costs to send, and the work continues after
        # its client has disconnected.
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.DESCRIPTIONS)
        self._with_closures = Slots(_WITH_CLOSURES, _PAGES, busy=TooBusy.DESCRIPTIONS)

    async def pin(self, tag: str) -> Pin:
        """Return the pin of a tag.

        Raises:
            TagUnknown, SourceUnreachable, StorageError: as ``Pins.pin``.
        """
        return (await self._pins.pin(tag)).pin

    @property
    def ignores_tags(self) -> bool:
        """See ``Pins.ignores_tags``."""
        return self._pins.ignores_tags

    def exact_tag(self, pin: Pin) -> str | None:
        """See ``Pins.exact_tag``."""
        return self._pins.exact_tag(pin.revision)

    async def describe(self, request: ImageRequest, pin: Pin, *, compare: bool) -> ImageDescription | None:
        """Describe an image; ``None`` if it is not stored.

        Args:
            request: its packages.
            pin: the state of the source that they are from.
            compare: whether to look for images that share layers with it.

        Raises:
            StorageError: the storage cannot be read.
            TooBusy: the queue for descriptions is full.
        """
        if self._cache is None:
            return None
        async with self._slots.slot():
            return await self._describe(self._cache, request, pin, compare=compare)

    async def _describe(
        self, cache: BuildCache, request: ImageRequest, pin: Pin, *, compare: bool
    ) -> ImageDescription | None:
        image = await cache.find_recent(pin, request) or await cache.find(pin, request)
        if image is None:
            return None
        manifest = _parsed(_Manifest, image.manifest.content)
        config = _parsed(_Config, await self._content(manifest.config.digest) if manifest else None)
        if manifest is None or config is None or len(manifest.layers) != len(config.history):
            return None
        layers = tuple(
            DescribedLayer(layer.digest, layer.size, tuple(history.comment.split()))
            for layer, history in zip(manifest.layers, config.history, strict=True)
        )
        annotations = manifest.annotations
        known = await self._evaluator.known(request, pin)
        digest = str(image.manifest.descriptor.digest)
        compared, shared = 0, tuple[Shared, ...]()
        if compare:
            layers, compared, shared = await self._compared(digest, layers)
        # Off the event loop: package authors wrote the texts.
        packages = await asyncio.to_thread(_packages, known, annotations.get(PACKAGES, ""))
        platform = str(request.platform)
        return ImageDescription(
            platform, digest, packages, layers, config.config, annotations, shared, compared
        )

    async def digest(self, request: ImageRequest, pin: Pin) -> str | None:
        """Return the digest of an image; ``None`` if it is not stored.

        Raises:
            StorageError: the storage cannot be read.
            TooBusy: the queue for descriptions is full.
        """
        if self._cache is None:
            return None
        async with self._slots.slot():
            image = await self._cache.find_recent(pin, request) or await self._cache.find(pin, request)
        return str(image.manifest.descriptor.digest) if image is not None else None

    @asynccontextmanager
    async def closures(self, images: Sequence[ImageDescription]) -> AsyncIterator[list[ImageClosure | None]]:
        """Have the store paths of some images in memory during the context; ``None`` for one without a record of them.

        Few callers have some at once: the others wait.

        Raises:
            StorageError: on entering the context: the storage cannot be read.
            TooBusy: likewise: too many are waiting.
        """
        async with self._with_closures.slot():
            yield [await self._closures.find(Digest.parse(image.digest)) for image in images]

    async def _compared(
        self, digest: str, layers: Sequence[DescribedLayer]
    ) -> tuple[tuple[DescribedLayer, ...], int, tuple[Shared, ...]]:
        """Return layers with the numbers of images that have them, too; the number of other images; and these."""
        ours = {layer.digest: layer.size for layer in layers}
        seen, found = {digest}, []
        counts: Counter[str] = Counter()
        for report in self._history.recent():
            if report.manifest is None or report.manifest in seen or len(seen) > _COMPARED:
                continue
            seen.add(report.manifest)
            manifest = _parsed(_Manifest, await self._content(report.manifest))
            theirs = {layer.digest for layer in manifest.layers} if manifest else set()
            common = theirs & ours.keys()
            counts.update(common)
            if common:
                found.append(Shared(report, len(common), sum(ours[layer] for layer in common)))
        counted = tuple(replace(layer, shared=counts[layer.digest]) for layer in layers)
        return (
            counted,
            len(seen) - 1,
            tuple(sorted(found, key=lambda shared: (-shared.size, shared.build.name))),
        )

    async def _content(self, digest: str) -> bytes | None:
        try:
            blob = await self._blobs.find(Digest.parse(digest))
        except InvalidDigest:
            return None
        return await self._blobs.read(blob) if blob is not None else None


def _parsed(model: type[Parsed], content: bytes | None) -> Parsed | None:
    """Read a document that a record led to; ``None`` if it has another type than expected."""
    try:
        return model.model_validate_json(content or b"")
    except ValidationError:
        return None


def _packages(known: Sequence[Package], annotation: str) -> tuple[DescribedPackage, ...]:
    """The packages of the evaluation, or else of the annotation, which has no licences."""
    if known:
        packages: dict[tuple[str, str, tuple[str, ...], str], str] = {}
        for p in known:
            name, version = shortened(p.name, _NAME), shortened(p.version, _NAME)
            shown = (name, version, p.licences[:_LICENCES], shortened(p.description, _DESCRIPTION))
            packages.setdefault(shown, p.requested_name)
        described = [DescribedPackage(*shown, component) for shown, component in packages.items()]
        in_order = sorted(described, key=lambda package: (package.name, package.version))
        return tuple(_within_limits(in_order[:_PACKAGES]))
    pairs = [entry.partition(" ") for entry in annotation.split(", ") if entry]
    return tuple(DescribedPackage(name, version, (), "") for name, _, version in pairs[:_PACKAGES])


def _within_limits(packages: Iterable[DescribedPackage]) -> Iterator[DescribedPackage]:
    """Drop licences and descriptions beyond the limit of an image."""
    left = _TEXTS
    for package in packages:
        left -= len(package.description) + sum(map(len, package.licences))
        yield package if left >= 0 else replace(package, licences=(), description="")
