"""Coordinate concurrent builds: share identical ones, bound their number, and cache recent failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBuilder
from nixery.builds.events import (
    Build,
    BuildEvent,
    BuildObserver,
    Failed,
    Joined,
    Observe,
    Queued,
    Requested,
    Reused,
    Started,
)
from nixery.builds.image import Image
from nixery.builds.slots import Slots
from nixery.caching import SingleFlight, TTLCache, size_of_error
from nixery.errors import (
    AnswerTooLarge,
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildFailed,
    BuildNotAllowed,
    ClosureTooLarge,
    EvaluationFailed,
    InternalError,
    NixeryError,
    NixTimedOut,
    PackagesUnavailable,
    QuotaExceeded,
    ShuttingDown,
    TooBusy,
    Unavailable,
    UnsafeContents,
)
from nixery.image.name import ImageRequest
from nixery.request_context import (
    INTERNAL,
    Client,
    Parties,
    current_parties,
    current_request,
    enter_parties,
)
from nixery.sources.source import Pin

# Failures that a retry would repeat. Clients retry at once, containerd up to five times.
_PERMANENT_ERRORS = (
    AnswerTooLarge,
    BuildFailed,
    NixTimedOut,
    BuildDeadlineExceeded,
    ClosureTooLarge,
    EvaluationFailed,
    PackagesUnavailable,
    UnsafeContents,
)

# Bytes of remembered failures.
_FAILURES = 8 * 1024 * 1024

# Concurrent look-ups of images in the storage, and the queue for them, which exceeds the default number of
# connections.
_LOOK_UPS, _WAITING = 16, 2048

_Key = tuple[Pin, ImageRequest]

# Ends the admission of a build, once. The argument is the number of compressed bytes of the image; 0 if the build
# failed, and ``None`` if it never started.
Leave = Callable[[int | None], None]

# Admits a new build for the clients that request it, the one that started it first. Raises ``QuotaExceeded``.
Admit = Callable[[Collection[Client]], Leave]

_log = structlog.get_logger("nixery.build")


async def _nothing() -> None:
    """Learn nothing."""


def _admit_all(_: Collection[Client]) -> Leave:
    return lambda _: None


@dataclass(frozen=True, slots=True)
class BuildBounds:
    """Limits of builds.

    Attributes:
        slots: concurrent and waiting builds. Joining a running build takes no slot, and neither does a stored
            image.
        seconds: timeout of a build from its start; ``None`` for no limit.
        look_ups: concurrent and waiting look-ups of images in the storage. Without a limit, clients that
            request made-up names and disconnect would make all others wait for the storage.
        admit: decides whether the clients of a new build may have it built, before it waits for a slot.
        refresh: is called before that, to learn what it depends on.
    """

    slots: Slots
    seconds: float | None = None
    look_ups: Slots = field(default_factory=lambda: Slots(_LOOK_UPS, _WAITING, busy=TooBusy.IMAGES))
    admit: Admit = _admit_all
    refresh: Callable[[], Awaitable[None]] = _nothing


@dataclass(slots=True)
class _Admission:
    """An admitted build; ``size`` is the argument of ``Leave``."""

    size: int | None = None


class BuildCoordinator:
    """Shares one build among concurrent identical requests, and its result among later ones.

    Args:
        cache: of finished images; ``None`` to build each time.
        builder: for images that are not in the cache.
        observers: receive the events of all builds, in this order.
        bounds: of builds.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        cache: BuildCache | None,
        builder: ImageBuilder,
        observers: Sequence[BuildObserver],
        bounds: BuildBounds,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._builder = builder
        self._observers = observers
        self._bounds = bounds
        self._failure_time_to_live = failure_time_to_live
        self._failures: TTLCache[_Key, tuple[Build, NixeryError]] = TTLCache(_FAILURES, clock)
        self._in_flight: SingleFlight[_Key, Image] = SingleFlight()
        self._builds: dict[_Key, Build] = {}
        # Of these builds, by id: the clients that requested them, the first one first; their tasks; and why those end
        # that were cancelled.
        self._requesters: dict[str, dict[Client, None]] = {}
        self._tasks: dict[str, asyncio.Task[object]] = {}
        self._cancelled: dict[str, BuildCancelled] = {}
        self._unattended: set[asyncio.Task[None]] = set()
        # By the id of a build that ``begin`` started: done once it has a slot or a place in the queue.
        self._admissions: dict[str, asyncio.Future[None]] = {}
        self._running: set[_Key] = set()
        self._draining = False
        self._ended = asyncio.Event()

    async def image(
        self, request: ImageRequest, pin: Pin, tag: str | None = None, *, may_build: bool = True
    ) -> Image:
        """Return the requested image once all of its parts are stored.

        The build continues if the caller is cancelled. ``tag`` is the one that the client named, for the
        reports of a build that this starts. Without ``may_build``, only a stored image is returned.

        Raises:
            BuildNotAllowed: the image is not stored, and ``may_build`` is false.
            PackagesUnavailable: with every unavailable package.
            PackageSetChanged: that state of the package set no longer exists.
            BuildError: the image cannot be built.
            ClosureTooLarge: the image would exceed the limit.
            UnsafeContents: a package holds files that no image may have.
            StorageError: the image cannot be stored.
            TooBusy: the queue is full.
            QuotaExceeded: none of the clients that request the image may start a build now.
            BuildCancelled: ``cancel`` ended the build after this had joined it.
            ShuttingDown: this was closed before the build ended.
            InternalError: a bug of this program; the log has the traceback.
        """
        key = (pin, request)
        image = await self._cache.find_recent(pin, request) if self._cache else None
        if image is not None:
            return image
        if not may_build:
            # Nor is a failure shown: its message has the end of a builder's log.
            return await self._stored(request, pin)
        failure = self._failures.get(key)
        if failure is not None:
            raise failure[1].without_frames()
        context = current_request()
        if context is not None:
            context.waited = True
        await self._end_of_cancelled(key)
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = Build.of(request, pin, tag)
        elif context is not None and build.request_id is not None:
            self._tell(build, Joined(build.request_id))
        self._note_requester(build)
        return await self._in_flight.run(key, partial(self._find_or_build, request, pin))

    async def begin(self, request: ImageRequest, pin: Pin, tag: str | None = None) -> Build:
        """Start to build an image, or join its running build, without waiting for the result.

        ``tag`` as for ``image``.

        Returns:
            The build, once it has a slot or a place in the queue; or the one that failed recently.

        Raises:
            TooBusy: the queue is full.
            QuotaExceeded: as for ``image``.
            ShuttingDown: this was closed before the build had begun.
        """
        key = (pin, request)
        failure = self._failures.get(key)
        if failure is not None:
            return failure[0]
        await self._end_of_cancelled(key)
        build = self._builds.get(key)
        joined = build is not None
        if build is None:
            build = self._builds[key] = Build.of(request, pin, tag)
            self._admissions[build.id] = asyncio.get_running_loop().create_future()
            self._tell(build, Requested())
            task = asyncio.ensure_future(self._build_unattended(build))
            self._unattended.add(task)
            task.add_done_callback(self._unattended.discard)
        self._note_requester(build)
        admission = self._admissions.get(build.id)
        if admission is not None:
            try:
                await asyncio.shield(admission)  # other callers may wait for it
            except QuotaExceeded:
                if not joined:
                    raise
                # Another client's quota refuses nothing of this one.
                return await self.begin(request, pin, tag)
        return build

    def require_accepting(self) -> None:
        """Check that a new build would start.

        Raises:
            ShuttingDown: it would not: ``drain`` was called.
        """
        if self._draining:
            raise ShuttingDown

    async def drain(self) -> None:
        """Start no more builds, and return once none is running. Requests for stored images are still answered."""
        self._draining = True
        while self._running:
            self._ended.clear()
            await self._ended.wait()

    def requesters(self, build: str) -> Sequence[Client] | None:
        """Return the clients that requested a build that waits or runs here, the first one first; ``None`` for another one.

        Clients that have disconnected are among them: they may ask again for what they have begun.
        """
        found = self._requesters.get(build)
        return None if found is None else tuple(found)

    def cancel(self, build: str, reason: BuildCancelled) -> bool:
        """End a build that waits or runs here; its clients get the reason. Returns before its processes have ended.

        A request for the image that comes later starts a new build.

        Returns:
            Whether there is such a build.
        """
        task = self._tasks.get(build)
        if (
            task is not None and build not in self._cancelled
        ):  # a second cancellation would disturb the first one
            self._cancelled[build] = reason
            task.cancel()
        return task is not None

    async def _end_of_cancelled(self, key: _Key) -> None:
        """Wait until the build of an image has ended, if it was cancelled: who asks now gets a new one."""
        while (build := self._builds.get(key)) is not None and build.id in self._cancelled:
            with suppress(NixeryError):
                await self._in_flight.run(key, partial(self._find_or_build, key[1], key[0]))

    def _note_requester(self, build: Build) -> None:
        context = current_request()
        client = context.client if context is not None else INTERNAL
        self._requesters.setdefault(build.id, {})[client] = None

    async def close(self) -> None:
        """End all builds."""
        await self._in_flight.close()

    async def _build_unattended(self, build: Build) -> None:
        request, pin = build.request, build.pin
        refused: NixeryError | None = None
        context = current_request()
        enter_parties(Parties(context.client if context else INTERNAL, awaited=False))
        try:
            await self._in_flight.run((pin, request), partial(self._find_or_build, request, pin))
        except Unavailable as error:
            refused = error
        except NixeryError:
            pass  # observers have the event
        finally:
            self._admit(build, refused)

    def _admit(self, build: Build, refused: NixeryError | None = None) -> None:
        admission = self._admissions.pop(build.id, None)
        if admission is not None and refused is not None:
            admission.set_exception(refused)
            admission.exception()  # marks it as retrieved: all callers may have left
        elif admission is not None:
            admission.set_result(None)

    async def _find_or_build(self, request: ImageRequest, pin: Pin) -> Image:
        build = self._builds[pin, request]
        observe = partial(self._tell, build)
        waited = False

        def queued(position: int) -> None:
            nonlocal waited
            waited = True
            observe(Queued(position, self._bounds.slots.wait(position)))
            self._admit(build)

        with self._in_progress(build):
            async with self._bounds.look_ups.slot():
                image = await self._find(request, pin, observe)
            if image is not None:
                return image
            await self._bounds.refresh()
            self.require_accepting()
            with self._admission() as admission:
                async with self._bounds.slots.slot(queued):
                    self.require_accepting()
                    self._running.add((pin, request))
                    # Another server on the same storage may have built it meanwhile.
                    image = await self._find(request, pin, observe) if waited else None
                    if image is not None:
                        return image
                    observe(Started())
                    admission.size = 0
                    self._admit(build)
                    async with _deadline(self._bounds.seconds):
                        image = await self._builder.build(request, pin, observe)
                    admission.size = sum(size for _, size in image.parts)
            return await self._cache.add(pin, request, image) if self._cache else image

    @contextmanager
    def _in_progress(self, build: Build) -> Iterator[None]:
        """Let a build that the current task runs be cancelled, and observers and later requests learn how it ends."""
        key = (build.pin, build.request)
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("builds run in tasks")
        self._tasks[build.id] = task
        try:
            yield
        except NixeryError as error:
            error.build = build.id
            self._tell(build, Failed(error))
            if isinstance(error, _PERMANENT_ERRORS):
                kept = build, error.without_frames()
                self._failures.put(key, kept, size_of_error(error), self._failure_time_to_live)
            raise
        except asyncio.CancelledError:
            reason = self._cancelled.get(build.id)
            self._tell(build, Failed(reason or ShuttingDown()))
            if reason is None:
                raise
            reason.build = build.id
            raise reason from None
        except Exception as error:
            _log.exception("build failed unexpectedly", build=build.id)
            internal = InternalError(build.request_id)
            internal.build = build.id
            self._tell(build, Failed(internal))
            raise internal from error
        finally:
            del self._builds[key], self._requesters[build.id], self._tasks[build.id]
            self._cancelled.pop(build.id, None)
            self._running.discard(key)
            self._ended.set()

    async def _stored(self, request: ImageRequest, pin: Pin) -> Image:
        async with self._bounds.look_ups.slot():
            image = await self._cache.find(pin, request) if self._cache else None
        if image is None:
            raise BuildNotAllowed(request.name)
        return image

    @contextmanager
    def _admission(self) -> Iterator[_Admission]:
        # Others may have joined during the look-up: the quota of one client must not refuse their build.
        leave = self._bounds.admit(tuple(current_parties().clients))
        admission = _Admission()
        try:
            yield admission
        finally:
            leave(admission.size)

    async def _find(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image | None:
        image = await self._cache.find(pin, request) if self._cache else None
        if image is not None:
            observe(Reused(image.manifest.descriptor.digest))
        return image

    def _tell(self, build: Build, event: BuildEvent) -> None:
        for observer in self._observers:
            observer.observe(build, event)


@asynccontextmanager
async def _deadline(seconds: float | None) -> AsyncIterator[None]:
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if timeout.expired() and seconds is not None:
            raise BuildDeadlineExceeded(seconds) from None
        raise
