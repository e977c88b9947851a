"""Images, found or built: each of them once, however many ask."""

from __future__ import annotations

from functools import partial

from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.events import BuildObserver, Failed, Reused
from nixery.pipeline.image import Image
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.single_flight import SingleFlight
from nixery.sources.source import Pin


class SharedBuilds:
    """Identical requests at the same time share one build; later ones share its result, if there is a cache."""

    def __init__(self, cache: BuildCache | None, builder: ImageBuilder, observer: BuildObserver) -> None:
        self._cache = cache
        self._builder = builder
        self._observer = observer
        self._in_flight: SingleFlight[tuple[Pin, ImageRequest], Image] = SingleFlight()

    async def image(self, request: ImageRequest, pin: Pin) -> Image:
        """Return the requested image, after everything in it is stored.

        The build goes on if the caller is cancelled.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            PackageSetChanged: there is no such state of the package set any more.
            BuildError: there is no such image.
            StorageError: it cannot be stored.
            ShuttingDown: this was closed before the build ended.
        """
        image = await self._cache.find_recent(pin, request) if self._cache else None
        if image is not None:
            return image
        return await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))

    async def close(self) -> None:
        """End all builds."""
        await self._in_flight.close()

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        observe = partial(self._observer.observe, request)
        try:
            image = await self._cache.find(pin, request) if self._cache else None
            if image is not None:
                observe(Reused(image.manifest.descriptor.digest))
                return image
            image = await self._builder.build(request, pin, observe)
            if self._cache:
                await self._cache.add(pin, request, image)
        except NixeryError as error:
            observe(Failed(error))
            raise
        return image
