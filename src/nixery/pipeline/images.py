"""Images by name and tag: found, or built."""

from __future__ import annotations

import asyncio
from functools import partial

from nixery.errors import NixeryError, PackageSetChanged
from nixery.image.request import ImageRequest
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.events import BuildObserver, Failed, Reused
from nixery.pipeline.image import Image
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.pins import Pins
from nixery.pipeline.single_flight import SingleFlight
from nixery.sources.source import Pin

# How often a build begins anew because the package set was changed under it.
_ATTEMPTS = 3


class Images:
    """What the server asks for images; identical requests at the same time share one build."""

    def __init__(self, pins: Pins, cache: BuildCache, builder: ImageBuilder, observer: BuildObserver) -> None:
        self._pins = pins
        self._cache = cache
        self._builder = builder
        self._observer = observer
        self._in_flight: SingleFlight[tuple[Pin, ImageRequest], Image] = SingleFlight()

    async def image(self, request: ImageRequest, tag: str) -> Image:
        """Return the requested image, after everything in it is stored.

        The build goes on if the caller is cancelled.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            BuildError: there is no such image.
            StorageError: it cannot be stored.
            ShuttingDown: this was closed before the build ended.
        """
        pin = await self._pins.pin(tag)
        for _ in range(_ATTEMPTS):
            image = await self._cache.find_recent(pin, request)
            if image is not None:
                return image
            try:
                return await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))
            except PackageSetChanged:
                pin = await self._pins.replace(tag, pin)
        raise PackageSetChanged

    async def close(self) -> None:
        """End all builds."""
        await asyncio.gather(self._in_flight.close(), self._pins.close())

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        observe = partial(self._observer.observe, request)
        try:
            image = await self._cache.find(pin, request)
            if image is not None:
                observe(Reused(image.manifest.descriptor.digest))
                return image
            image = await self._builder.build(request, pin, observe)
            await self._cache.add(pin, request, image)
        except NixeryError as error:
            observe(Failed(error))
            raise
        return image
