"""What an image says about itself (image specification, annotations.md): the same in the manifest and in the config's labels.

What can be told of an image that is there; nothing is built for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nixery.builds.build_cache import BuildCache
from nixery.builds.evaluation_cache import Evaluator
from nixery.builds.history import BuildHistory, BuildReport
from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.errors import InvalidDigest, TooBusy
from nixery.image.name import ALWAYS_INCLUDED, SHELL_PACKAGES, ImageRequest
from nixery.nix.packages import Package
from nixery.oci.digest import Digest
from nixery.plain_text import escaped, escaped_lines, shortened
from nixery.source_location import COMMIT
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore

# Characters of an annotation; a longer one is left out. containerd and registries accept manifests and
# configs up to 4 MiB, and both contain each annotation.
_LONGEST = 256 * 1024

_PREFIX = "org.opencontainers.image"

# Our own: the specification has no word for what is inside.
PACKAGES = "dev.nixery.packages"

# SPDX specification, annex D: an "idstring".
_NO_IDENTIFIER = re.compile(r"[^a-zA-Z0-9.-]+")


def image_annotations(request: ImageRequest, packages: Sequence[Package], pin: Pin) -> Mapping[str, str]:
    """Describe an image, by what it was made from and by nothing else; what is not known is left out."""
    versions = {(package.name, package.version) for package in packages}
    found = {
        f"{_PREFIX}.title": "/".join([*(["shell"] if request.shell else []), *_asked_for(request)]) or "base",
        f"{_PREFIX}.version": _version(request, packages),
        f"{_PREFIX}.licenses": _licences(packages),
        f"{_PREFIX}.source": pin.url,
        f"{_PREFIX}.revision": pin.revision if pin.url or COMMIT.match(pin.revision) else None,
        PACKAGES: ", ".join(f"{name} {version}".strip() for name, version in sorted(versions)),
    }
    return {name: escaped_lines(value) for name, value in found.items() if value and len(value) <= _LONGEST}


def readable_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return a definition's annotations with unsafe characters escaped, since clients show them."""
    return {escaped(name): escaped_lines(value) for name, value in sorted(labels.items())}


def _asked_for(request: ImageRequest) -> Sequence[str]:
    """The packages that make the image what it is: all names of the same image have to say the same here."""
    understood = {*ALWAYS_INCLUDED, *(SHELL_PACKAGES if request.shell else ())}
    return [package for package in request.requested if package not in understood] or request.requested


def _version(request: ImageRequest, packages: Sequence[Package]) -> str | None:
    asked_for = _asked_for(request)
    found = [package for package in packages if package.requested_name in asked_for[:1]]
    return found[0].version if len(asked_for) == len(found) == 1 else None


def _licences(packages: Sequence[Package]) -> str:
    """An SPDX expression. All of them hold, since all of the packages are inside."""
    identifiers = set()
    for licence in {licence for package in packages for licence in package.licences}:
        plain = _NO_IDENTIFIER.sub("-", licence).strip("-")
        identifiers.add(licence if licence and plain == licence else f"LicenseRef-{plain or 'unknown'}")
    return " AND ".join(sorted(identifiers))


# Other images that an image is compared with: the last ones that were built.
_COMPARED = 30

# Images that are described at once, and that wait for it: describing one reads up to as many manifests.
_AT_ONCE, _QUEUE = 4, 64

# Of a package: licences that are shown, characters of its name and of its version, and of its description.
_LICENCES, _NAME, _DESCRIPTION = 16, 100, 500

# Of an image: packages that are shown, and characters of their licences and descriptions. A list may stand
# for thousands, and each view of the image makes the server write all of it.
_PACKAGES, _TEXTS = 2000, 256 * 1024


class _Descriptor(BaseModel):
    digest: str
    size: int


class _Manifest(BaseModel):
    config: _Descriptor
    layers: list[_Descriptor]
    annotations: dict[str, str] = {}


class _History(BaseModel):
    comment: str = ""


class _Config(BaseModel):
    config: dict[str, Any]
    history: list[_History]


Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DescribedLayer:
    """A layer: its digest, its compressed size in bytes, and what is in it."""

    digest: str
    size: int
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DescribedPackage:
    """A package of an image; licences are empty where nobody knows."""

    name: str
    version: str
    licences: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Shared:
    """What an image has in common with another one: layers, and their size in bytes."""

    build: BuildReport
    layers: int
    size: int


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """An image for one platform.

    Attributes:
        packages: in order; of more than 2,000, the first ones.
        config: how its containers start, in the words of the image specification.
        shared: recently built images that share layers with it, the most similar first.
    """

    platform: str
    digest: str
    packages: tuple[DescribedPackage, ...]
    layers: tuple[DescribedLayer, ...]
    config: Mapping[str, Any]
    annotations: Mapping[str, str]
    shared: tuple[Shared, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)


class ImageDescriptions:
    """Describes images.

    Args:
        pins: what tags stand for.
        cache: where images are found; ``None`` for nowhere.
        evaluator: knows their packages.
        blobs: where they are.
        history: of other images.
    """

    def __init__(
        self,
        pins: Pins,
        cache: BuildCache | None,
        evaluator: Evaluator,
        blobs: BlobStore,
        history: BuildHistory,
    ) -> None:
        self._pins = pins
        self._cache = cache
        self._evaluator = evaluator
        self._blobs = blobs
        self._history = history
        # A request may cost the server a thousand times what it costs to send, and the work continues after
        # its client has gone.
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.DESCRIPTIONS)

    async def pin(self, tag: str) -> Pin:
        """Return what a tag stands for.

        Raises:
            TagUnknown, SourceUnreachable, StorageError: as ``Pins.pin``.
        """
        return (await self._pins.pin(tag)).pin

    async def describe(self, request: ImageRequest, pin: Pin, *, compare: bool) -> ImageDescription | None:
        """Describe an image; ``None`` if it is not stored.

        Args:
            request: its packages.
            pin: the state of the source that they are from.
            compare: whether to look for layers that it shares with others.

        Raises:
            StorageError: the storage cannot be read.
            TooBusy: too many requests for descriptions wait already.
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
        shared = await self._shared(digest, layers) if compare else ()
        packages = _packages(known, annotations.get(PACKAGES, ""))
        platform = str(request.platform)
        return ImageDescription(platform, digest, packages, layers, config.config, annotations, shared)

    async def _shared(self, digest: str, layers: Sequence[DescribedLayer]) -> tuple[Shared, ...]:
        ours = {layer.digest: layer.size for layer in layers}
        seen, found = {digest}, []
        for report in self._history.recent():
            if report.manifest is None or report.manifest in seen or len(seen) > _COMPARED:
                continue
            seen.add(report.manifest)
            manifest = _parsed(_Manifest, await self._content(report.manifest))
            theirs = {layer.digest for layer in manifest.layers} if manifest else set()
            common = theirs & ours.keys()
            if common:
                found.append(Shared(report, len(common), sum(ours[layer] for layer in common)))
        return tuple(sorted(found, key=lambda shared: (-shared.size, shared.build.name)))

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


def _packages(known: Sequence[Package], told: str) -> tuple[DescribedPackage, ...]:
    """What the evaluation said, or else the annotation, which knows no licences."""
    if known:
        packages = {
            DescribedPackage(
                shortened(p.name, _NAME),
                shortened(p.version, _NAME),
                p.licences[:_LICENCES],
                shortened(p.description, _DESCRIPTION),
            )
            for p in known
        }
        in_order = sorted(packages, key=lambda package: (package.name, package.version))
        return tuple(_briefly(in_order[:_PACKAGES]))
    pairs = [entry.partition(" ") for entry in told.split(", ") if entry]
    return tuple(DescribedPackage(name, version, (), "") for name, _, version in pairs[:_PACKAGES])


def _briefly(packages: Iterable[DescribedPackage]) -> Iterator[DescribedPackage]:
    """Drop licences and descriptions beyond the limit of an image."""
    left = _TEXTS
    for package in packages:
        left -= len(package.description) + sum(map(len, package.licences))
        yield package if left >= 0 else replace(package, licences=(), description="")
