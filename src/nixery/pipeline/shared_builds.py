"""Images, found or built: each of them once, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from nixery.errors import (
    BuildFailed,
    BuildTimedOut,
    EvaluationFailed,
    NixeryError,
    PackagesUnavailable,
    ShuttingDown,
)
from nixery.image.request import ImageRequest
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.events import Build, BuildObserver, Failed, Requested, Reused, Started
from nixery.pipeline.image import Image
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.single_flight import SingleFlight
from nixery.sources.source import Pin

# What would be the same a moment later. Clients ask again at once, containerd up to five times.
_LASTING = (BuildFailed, BuildTimedOut, EvaluationFailed, PackagesUnavailable)

# Bytes of failures that are remembered.
_CAPACITY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Failure:
    build: Build
    error: NixeryError
    until: float


class SharedBuilds:
    """Identical requests at the same time share one build; later ones share its result, if there is a cache.

    Args:
        cache: of results.
        builder: for what is not there.
        observer: is told.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        cache: BuildCache | None,
        builder: ImageBuilder,
        observer: BuildObserver,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failure_time_to_live = failure_time_to_live
        self._clock = clock
        self._failures: LeastRecentlyUsed[tuple[Pin, ImageRequest], _Failure] = LeastRecentlyUsed(_CAPACITY)
        self._cache = cache
        self._builder = builder
        self._observer = observer
        self._in_flight: SingleFlight[tuple[Pin, ImageRequest], Image] = SingleFlight()
        self._builds: dict[tuple[Pin, ImageRequest], Build] = {}
        self._unattended: set[asyncio.Task[None]] = set()

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
        failure = self._failure(request, pin)
        if failure is not None:
            # Without the traceback, which would grow each time.
            raise failure.error.with_traceback(None)
        return await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))

    def begin(self, request: ImageRequest, pin: Pin) -> Build:
        """Have an image built that nobody waits for; return the build, which may go on already, or have failed just now."""
        failure = self._failure(request, pin)
        if failure is not None:
            return failure.build
        key = (pin, request)
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = Build.of(request, pin)
            self._observer.observe(build, Requested())
            task = asyncio.ensure_future(self._unattended_build(request, pin))
            self._unattended.add(task)
            task.add_done_callback(self._unattended.discard)
        return build

    async def _unattended_build(self, request: ImageRequest, pin: Pin) -> None:
        with suppress(NixeryError):  # observers are told
            await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))

    def _failure(self, request: ImageRequest, pin: Pin) -> _Failure | None:
        failure = self._failures.get((pin, request))
        return failure if failure is not None and failure.until > self._clock() else None

    async def close(self) -> None:
        """End all builds."""
        await self._in_flight.close()

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        build = self._builds.setdefault((pin, request), Build.of(request, pin))
        observe = partial(self._observer.observe, build)
        try:
            image = await self._cache.find(pin, request) if self._cache else None
            if image is not None:
                observe(Reused(image.manifest.descriptor.digest))
                return image
            observe(Started())
            image = await self._builder.build(request, pin, observe)
            if self._cache:
                await self._cache.add(pin, request, image)
        except NixeryError as error:
            error.build = build.id
            observe(Failed(error))
            if isinstance(error, _LASTING):
                until = self._clock() + self._failure_time_to_live
                self._failures.put((pin, request), _Failure(build, error, until), _size(error))
            raise
        except asyncio.CancelledError:
            observe(Failed(ShuttingDown()))
            raise
        finally:
            del self._builds[pin, request]
        return image


def _size(error: NixeryError) -> int:
    """Bytes of what an error holds: its message, and the end of a log."""
    return len(str(error)) + sum(map(len, getattr(error, "log_tail", ())))
