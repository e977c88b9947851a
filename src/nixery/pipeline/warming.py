"""Having images built before somebody pulls them."""

from __future__ import annotations

from collections.abc import Sequence

from nixery.errors import PackageSetChanged
from nixery.image.request import ImageRequest
from nixery.pipeline.events import Build
from nixery.pipeline.images import require_few_packages
from nixery.pipeline.pins import Pins
from nixery.pipeline.shared_builds import SharedBuilds
from nixery.sources.source import PackageSource


class Warming:
    """Begins builds that nobody waits for.

    Args:
        pins: what tags stand for.
        source: where packages are from.
        builds: where builds are begun.
        most_packages: that a name may ask for.
    """

    def __init__(self, pins: Pins, source: PackageSource, builds: SharedBuilds, most_packages: int) -> None:
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
