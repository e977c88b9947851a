"""Failures that would be the same a moment later.

Images, found or built: each of them once, however many ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBuilder
from nixery.builds.events import Build, BuildObserver, Failed, Joined, Queued, Requested, Reused, Started
from nixery.builds.image import Image
from nixery.builds.layers import Observe
from nixery.builds.slots import Slots
from nixery.caching import LRUCache, SingleFlight
from nixery.errors import (
    AnswerTooLarge,
    BuildDeadlineExceeded,
    BuildFailed,
    ClosureTooLarge,
    EvaluationFailed,
    InternalError,
    NixeryError,
    NixTimedOut,
    PackagesUnavailable,
    ShuttingDown,
    TooBusy,
    UnsafeContents,
)
from nixery.image.name import ImageRequest
from nixery.request_context import INTERNAL, Parties, current_request, enter_parties
from nixery.sources.source import Pin

# Clients ask again at once, containerd up to five times.
_LASTING = (
    AnswerTooLarge,
    BuildFailed,
    NixTimedOut,
    BuildDeadlineExceeded,
    ClosureTooLarge,
    EvaluationFailed,
    PackagesUnavailable,
    UnsafeContents,
)

# Bytes of failures that are remembered.
_CAPACITY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """A build that failed a moment ago, and why."""

    build: Build
    error: NixeryError
    until: float


class RecentFailures:
    """Remembers failures for a while.

    Args:
        time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(self, time_to_live: float, clock: Callable[[], float]) -> None:
        self._time_to_live = time_to_live
        self._clock = clock
        self._kept: LRUCache[tuple[Pin, ImageRequest], Failure] = LRUCache(_CAPACITY)

    def add(self, build: Build, error: NixeryError) -> None:
        """Remember a failure, if another attempt would be in vain."""
        if isinstance(error, _LASTING):
            failure = Failure(build, error.without_frames(), self._clock() + self._time_to_live)
            self._kept.put((build.pin, build.request), failure, size_of(error))

    def find(self, request: ImageRequest, pin: Pin) -> Failure | None:
        """Return the failure that is the answer still."""
        failure = self._kept.get((pin, request))
        return failure if failure is not None and failure.until > self._clock() else None


def size_of(error: NixeryError) -> int:
    """Bytes that an error holds: its message, the end of a log, and the reasons of unavailable packages."""
    packages = getattr(error, "packages", ())
    return len(str(error)) + sum(map(len, (*getattr(error, "log_tail", ()), *map(str, packages))))


_log = structlog.get_logger("nixery.build")

# Images that are looked up in the storage at once; and the queue for that, which exceeds the default number
# of connections.
_LOOK_UPS, _WAITING = 16, 2048


@dataclass(frozen=True, slots=True)
class BuildBounds:
    """Limits of builds.

    Attributes:
        slots: concurrent and waiting builds. Joining a running build takes no slot, and neither does a stored
            image.
        seconds: timeout of a build from its start; ``None`` for no limit.
        look_ups: concurrent and waiting look-ups of images in the storage. Without a limit, clients that
            request made-up names and disconnect would make all others wait for the storage.
    """

    slots: Slots
    seconds: float | None = None
    look_ups: Slots = field(default_factory=lambda: Slots(_LOOK_UPS, _WAITING, busy=TooBusy.IMAGES))


class BuildCoordinator:
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
        self._failures = RecentFailures(failure_time_to_live, clock)
        self._cache = cache
        self._builder = builder
        self._observer = observer
        self._bounds = bounds
        self._in_flight: SingleFlight[tuple[Pin, ImageRequest], Image] = SingleFlight()
        self._builds: dict[tuple[Pin, ImageRequest], Build] = {}
        self._unattended: set[asyncio.Task[None]] = set()
        # By the id of a build that nobody waits for: done as soon as it is clear that it is not sent away.
        self._admissions: dict[str, asyncio.Future[None]] = {}

    async def image(self, request: ImageRequest, pin: Pin) -> Image:
        """Return the requested image once all of its parts are stored.

        The build continues if the caller is cancelled.

        Raises:
            PackagesUnavailable: with every unavailable package.
            PackageSetChanged: that state of the package set no longer exists.
            BuildError: the image cannot be built.
            ClosureTooLarge: the image would exceed the limit.
            UnsafeContents: a package holds files that no image may have.
            StorageError: the image cannot be stored.
            TooBusy: the queue is full.
            ShuttingDown: this was closed before the build ended.
            InternalError: a bug of this program; the log has the traceback.
        """
        image = await self._cache.find_recent(pin, request) if self._cache else None
        if image is not None:
            return image
        failure = self._failures.find(request, pin)
        if failure is not None:
            raise failure.error.without_frames()
        self._note_who_waits(request, pin)
        return await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))

    async def begin(self, request: ImageRequest, pin: Pin) -> Build:
        """Have an image built that nobody waits for.

        Returns:
            The build, as soon as it has begun or has its place in the queue. It may have been begun by somebody else, or have failed
            just now.

        Raises:
            TooBusy: too much is built and waits already.
            ShuttingDown: this was closed before it had begun.
        """
        failure = self._failures.find(request, pin)
        if failure is not None:
            return failure.build
        key = (pin, request)
        build = self._builds.get(key)
        if build is None:
            context = current_request()
            build = self._builds[key] = Build.of(request, pin, context.id if context else None)
            self._admissions[build.id] = asyncio.get_running_loop().create_future()
            self._observer.observe(build, Requested())
            task = asyncio.ensure_future(self._unattended_build(build))
            self._unattended.add(task)
            task.add_done_callback(self._unattended.discard)
        admission = self._admissions.get(build.id)
        if admission is not None:
            await asyncio.shield(admission)  # others may wait for it, too
        return build

    async def _unattended_build(self, build: Build) -> None:
        request, pin = build.request, build.pin
        refused: NixeryError | None = None
        context = current_request()
        enter_parties(Parties(context.client if context else INTERNAL, awaited=False))
        try:
            await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))
        except (TooBusy, ShuttingDown) as error:
            refused = error
        except NixeryError:
            pass  # observers are told
        finally:
            self._admit(build, refused)

    def _admit(self, build: Build, refused: NixeryError | None = None) -> None:
        admission = self._admissions.pop(build.id, None)
        if admission is not None and refused is not None:
            admission.set_exception(refused)
            admission.exception()  # Mark it as seen: who wanted to know may be gone.
        elif admission is not None:
            admission.set_result(None)

    def _note_who_waits(self, request: ImageRequest, pin: Pin) -> None:
        context = current_request()
        if context is not None:
            context.waited = True
        build = self._builds.get((pin, request))
        if build is None:
            self._builds[pin, request] = Build.of(request, pin, context.id if context else None)
        elif context is not None and build.request_id is not None:
            self._observer.observe(build, Joined(build.request_id))

    async def close(self) -> None:
        """End all builds."""
        await self._in_flight.close()

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        build = self._builds[pin, request]
        observe = partial(self._observer.observe, build)
        waited = False

        def queued(position: int) -> None:
            nonlocal waited
            waited = True
            observe(Queued(position))
            self._admit(build)

        try:
            async with self._bounds.look_ups.slot():
                image = await self._find(request, pin, observe)
            if image is not None:
                return image
            async with self._bounds.slots.slot(queued):
                # Another server on the same store may have built it meanwhile.
                image = await self._find(request, pin, observe) if waited else None
                if image is not None:
                    return image
                observe(Started())
                self._admit(build)
                image = await self._build(request, pin, observe)
            if self._cache:
                await self._cache.add(pin, request, image)
        except NixeryError as error:
            error.build = build.id
            observe(Failed(error))
            self._failures.add(build, error)
            raise
        except asyncio.CancelledError:
            observe(Failed(ShuttingDown()))
            raise
        except Exception as error:
            _log.exception("build failed unexpectedly", build=build.id)
            internal = InternalError(build.request_id)
            internal.build = build.id
            observe(Failed(internal))
            raise internal from error
        finally:
            del self._builds[pin, request]
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
                raise BuildDeadlineExceeded(self._bounds.seconds) from None
            raise
