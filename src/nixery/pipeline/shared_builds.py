"""Images, found or built: each of them once, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nixery.errors import (
    BuildFailed,
    BuildTimedOut,
    BuildTookTooLong,
    ClosureTooLarge,
    EvaluationFailed,
    NixeryError,
    PackagesUnavailable,
)
from nixery.image.request import ImageRequest
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.events import BuildObserver, Failed, Joined, Queued, Reused, Started
from nixery.pipeline.image import Image
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.layer_publisher import Observe
from nixery.pipeline.single_flight import SingleFlight
from nixery.pipeline.slots import Slots
from nixery.request_context import RequestContext, current_request
from nixery.sources.source import Pin

# What would be the same a moment later. Clients ask again at once, containerd up to five times.
_LASTING = (
    BuildFailed,
    BuildTimedOut,
    BuildTookTooLong,
    ClosureTooLarge,
    EvaluationFailed,
    PackagesUnavailable,
)

# Bytes of failures that are remembered.
_CAPACITY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BuildBounds:
    """How much is built.

    Attributes:
        slots: how many builds at once, and how many wait. Who joins a build that goes on takes none, and neither does what
            is found.
        seconds: that a build may take once it has begun; ``None`` for as many as it takes.
    """

    slots: Slots
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    error: NixeryError
    until: float


class SharedBuilds:
    """Identical requests at the same time share one build; later ones share its result, if there is a cache.

    Args:
        cache: of results.
        builder: for what is not there.
        observer: is told.
        bounds: of what is built.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        cache: BuildCache | None,
        builder: ImageBuilder,
        observer: BuildObserver,
        bounds: BuildBounds,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failure_time_to_live = failure_time_to_live
        self._clock = clock
        self._failures: LeastRecentlyUsed[tuple[Pin, ImageRequest], _Failure] = LeastRecentlyUsed(_CAPACITY)
        self._cache = cache
        self._builder = builder
        self._observer = observer
        self._bounds = bounds
        self._in_flight: SingleFlight[tuple[Pin, ImageRequest], Image] = SingleFlight()
        self._first: dict[tuple[Pin, ImageRequest], RequestContext] = {}

    async def image(self, request: ImageRequest, pin: Pin) -> Image:
        """Return the requested image, after everything in it is stored.

        The build goes on if the caller is cancelled.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            PackageSetChanged: there is no such state of the package set any more.
            BuildError: there is no such image.
            ClosureTooLarge: it would be larger than images are to be.
            StorageError: it cannot be stored.
            TooBusy: too much is built and waits already.
            ShuttingDown: this was closed before the build ended.
        """
        image = await self._cache.find_recent(pin, request) if self._cache else None
        if image is not None:
            return image
        failure = self._failures.get((pin, request))
        if failure is not None and failure.until > self._clock():
            # Without the traceback, which would grow each time.
            raise failure.error.with_traceback(None)
        self._note_who_waits(request, pin)
        return await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))

    def _note_who_waits(self, request: ImageRequest, pin: Pin) -> None:
        context = current_request()
        if context is not None:
            context.waited = True
            first = self._first.setdefault((pin, request), context)
            if first is not context:
                self._observer.observe(request, Joined(first.id))

    async def close(self) -> None:
        """End all builds."""
        await self._in_flight.close()

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        observe = partial(self._observer.observe, request)
        waited = False

        def queued(position: int) -> None:
            nonlocal waited
            waited = True
            observe(Queued(position))

        try:
            image = await self._find(request, pin, observe)
            if image is not None:
                return image
            async with self._bounds.slots.slot(queued):
                # Another server on the same store may have built it meanwhile.
                image = await self._find(request, pin, observe) if waited else None
                if image is not None:
                    return image
                observe(Started())
                image = await self._build(request, pin, observe)
            if self._cache:
                await self._cache.add(pin, request, image)
        except NixeryError as error:
            observe(Failed(error))
            if isinstance(error, _LASTING):
                until = self._clock() + self._failure_time_to_live
                self._failures.put((pin, request), _Failure(error, until), _size(error))
            raise
        finally:
            self._first.pop((pin, request), None)
        return image

    async def _find(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image | None:
        image = await self._cache.find(pin, request) if self._cache else None
        if image is not None:
            observe(Reused(image.manifest.descriptor.digest))
        return image

    async def _build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        bound = asyncio.timeout(self._bounds.seconds)
        try:
            async with bound:
                return await self._builder.build(request, pin, observe)
        except TimeoutError:
            if bound.expired() and self._bounds.seconds is not None:
                raise BuildTookTooLong(self._bounds.seconds) from None
            raise


def _size(error: NixeryError) -> int:
    """Bytes of what an error holds: its message, and the end of a log."""
    return len(str(error)) + sum(map(len, getattr(error, "log_tail", ())))
