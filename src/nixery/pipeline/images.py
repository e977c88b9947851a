"""What the server asks for: what a name and a tag stand for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nixery.errors import InvalidName, PackageSetChanged
from nixery.image.request import ImageRequest
from nixery.pipeline.image import Image, ImageIndex
from nixery.pipeline.indexes import Indexes
from nixery.pipeline.pin_records import Pinned
from nixery.pipeline.pins import Pins
from nixery.pipeline.shared_builds import SharedBuilds

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

    def __init__(self, pins: Pins, builds: SharedBuilds, indexes: Indexes, most_packages: int) -> None:
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
