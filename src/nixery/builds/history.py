"""What is known of a build, for people and for programs that watch it.

The builds that go on, and the last ones that have ended, also before a restart.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from enum import StrEnum
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, Field, ValidationError

from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayerPacked,
    LayerReused,
    LayersComplete,
    NamesClashed,
    Queued,
    Realised,
    Requested,
    Reused,
    Started,
    Stored,
)
from nixery.errors import StorageError, TooBusy
from nixery.image.name import ImageRequest
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import RecordStore

# Of the log of a build, the last ones are kept: lines, and characters in them.
_LINES = 500
_CHARACTERS = 64 * 1024

# Seconds since the epoch, up to the year 9999. Others may have written the record of a report.
Time = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]


class State(StrEnum):
    """How far a build is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FOUND = "found"  # there was nothing to do
    FAILED = "failed"


class Stage(BaseModel):
    """A part of a build; times are in seconds since the epoch."""

    name: str
    started: Time
    ended: Time | None = None


class Line(BaseModel):
    """A line of the log of a builder.

    Attributes:
        number: of the change of the report that brought it.
    """

    number: int
    derivation: str
    text: str


class BuildReport(BaseModel):
    """A build as it stands. Sizes are in bytes, times in seconds since the epoch.

    Attributes:
        number: of changes so far.
        name: of the image, without the platform.
        revision: the state of the package source.
        request_id: of the client's request that it was begun for, as logs and traces have it.
        position: in the queue; 1 is next.
        packages: how many are wanted; ``None`` as long as nobody knows, as for all that follow.
        paths: store paths in the closure.
        size: of the closure.
        fetched: of ``to_fetch`` that binary caches send.
        building: the derivations whose builders run.
        built: how many builders have ended.
        layers: how many there will be.
        packed: layers that were packed, and their bytes.
        reused: layers that were there, and their bytes.
        log: its last lines.
        dropped: how many lines of it are not here.
        manifest: digest of the finished image.
        error: why there is none.
    """

    id: str
    name: str
    platform: str
    revision: str
    created: Time
    request_id: str | None = None
    number: int = 0
    state: State = State.WAITING
    ended: Time | None = None
    position: int | None = None
    stages: list[Stage] = []
    packages: int | None = None
    paths: int | None = None
    size: int | None = None
    fetched: int = 0
    to_fetch: int = 0
    building: list[str] = []
    built: int = 0
    layers: int | None = None
    packed: int = 0
    packed_bytes: int = 0
    reused: int = 0
    reused_bytes: int = 0
    log: Annotated[list[Line], Field(repr=False)] = []
    dropped: int = 0
    manifest: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, build: Build, now: float) -> BuildReport:
        """Begin the report of a build."""
        return cls(
            id=build.id,
            name=image_name(build.request),
            platform=str(build.request.platform),
            revision=build.pin.revision,
            request_id=build.request_id,
            created=now,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None

    def enter(self, stage: str, now: float) -> None:
        """One stage is over, and the next begins."""
        self.leave(now)
        self.stages.append(Stage(name=stage, started=now))

    def leave(self, now: float) -> None:
        """The stage is over."""
        if self.stages and self.stages[-1].ended is None:
            self.stages[-1].ended = now

    def write(self, derivation: str, text: str) -> None:
        """Add a line to the log; the oldest ones may have to go."""
        self.log.append(Line(number=self.number, derivation=derivation, text=text))
        characters = sum(len(line.text) for line in self.log)
        while len(self.log) > _LINES or characters > _CHARACTERS:
            characters -= len(self.log.pop(0).text)
            self.dropped += 1


def image_name(request: ImageRequest) -> str:
    """Return the shortest name of an image, without its platform; of one with nothing in it, that of its platform."""
    name = "/".join([*(["shell"] if request.shell else []), *request.requested])
    return name or request.platform.architecture.name


BUILDS = "builds"

# Finished builds that are kept: those with an image, those that failed, and those that ended before their
# packages were known: refused, or found in the storage. A client can cause any number of the last two kinds
# within a minute. So they must not evict the others, and are kept in memory only.
_KEPT = 200
_KEPT_FAILED = 100
_KEPT_REFUSED = 50
_KEPT_FOUND = 50

# Seconds between two changes that a follower is told of, and after which he hears that nothing has changed.
_PAUSE = 0.2
_SILENCE = 15.0

_log = structlog.get_logger("nixery.build")


class BuildHistory:
    """The ``BuildObserver`` that can be asked.

    Args:
        records: where builds that have ended are kept; what is lost there is no harm.
        clock: seconds since the epoch.
    """

    def __init__(self, records: RecordStore, clock: Callable[[], float] = time.time) -> None:
        self._records = records
        self._clock = clock
        self._reports: dict[str, BuildReport] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._closed = False

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        report = self._reports.get(build.id)
        if (
            isinstance(event, Failed)
            and isinstance(event.error, TooBusy)
            and not (report and report.position)
        ):
            # It never began, and its client got that answer. A rejected crowd must not evict finished builds.
            # But a build that was in the queue and was displaced stays: clients that know its id ask for it.
            self._reports.pop(build.id, None)
            return
        if report is None:
            if isinstance(event, Reused):
                return  # nothing was built, and nobody was told to look here
            report = self._reports[build.id] = BuildReport.of(build, self._clock())
        report.number += 1
        _note(report, event, self._clock())
        if report.is_over and _is_brief(report):
            self._forget_brief()
        elif report.is_over:
            self._start(self._keep(report))
        if changed := self._changed.pop(build.id, None):
            changed.set()

    def get(self, build: str) -> BuildReport | None:
        """Return what is known of a build."""
        return self._reports.get(build)

    def recent(self) -> Sequence[BuildReport]:
        """Return all that are known, the latest first."""
        return [self._reports[key] for key in sorted(self._reports, reverse=True)]

    async def follow(
        self, build: str, after: int
    ) -> AsyncGenerator[tuple[BuildReport, Sequence[Line]], None]:
        """Tell of a build's changes until it is over, a few times a second at most, and now and then that there is none.

        Args:
            build: its id; nothing is told of one that is not known.
            after: the number of the last change that is known; 0 for none.

        Yields:
            The report, and those lines of its log that came after.
        """
        while (report := self._reports.get(build)) is not None:
            number = report.number
            yield report, [line for line in report.log if line.number > after]
            after = number
            if report.is_over or self._closed:
                return
            await asyncio.sleep(_PAUSE)
            if report.number == number and not self._closed:
                changed = self._changed.setdefault(build, asyncio.Event())
                try:
                    await asyncio.wait_for(changed.wait(), _SILENCE)
                except TimeoutError:
                    continue

    def start(self) -> None:
        """Read what was kept, in the background."""
        self._start(self._load())

    async def close(self) -> None:
        """Write what has not been written yet, and let followers go."""
        self._closed = True
        for changed in self._changed.values():
            changed.set()
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _load(self) -> None:
        try:
            # Ids are in the order in which builds began.
            keys: list[str] = []
            async for listed in self._records.scan(BUILDS):
                heapq.heappush(keys, listed.key)
                if len(keys) > _KEPT + _KEPT_FAILED:
                    heapq.heappop(keys)
            for key in keys:
                try:
                    report = BuildReport.model_validate_json(await self._records.get(BUILDS, key) or b"")
                except ValidationError:
                    continue  # torn, or from another time
                if report.id == key and report.is_over:
                    self._reports.setdefault(key, report)
            self._forget_brief()
            async with self._lock:
                await self._forget()
        except StorageError as error:
            _log.warning("earlier builds are not known", reason=str(error))

    async def _keep(self, report: BuildReport) -> None:
        try:
            # One after the other: a build may be forgotten before it is written.
            async with self._lock:
                if report.id in self._reports:
                    content = report.model_dump_json().encode()
                    if len(content) <= KINDS[BUILDS].largest:
                        await self._records.put(BUILDS, report.id, content)
                await self._forget()
        except StorageError as error:
            _log.warning("a build will not be known after a restart", reason=str(error))

    async def _forget(self) -> None:
        ended = [report for report in self._reports.values() if report.is_over and not _is_brief(report)]
        failed = {report.id for report in ended if report.state is State.FAILED}
        others = {report.id for report in ended} - failed
        for ids, most in ((failed, _KEPT_FAILED), (others, _KEPT)):
            for key in sorted(ids)[:-most]:
                self._reports.pop(key, None)
                await self._records.delete(BUILDS, key)

    def _forget_brief(self) -> None:
        # At once: a client that causes many of them must not have to wait for the storage to bound their number.
        brief = [report for report in self._reports.values() if _is_brief(report)]
        for state, most in ((State.FAILED, _KEPT_REFUSED), (State.FOUND, _KEPT_FOUND)):
            for key in sorted(report.id for report in brief if report.state is state)[:-most]:
                del self._reports[key]


def _is_brief(report: BuildReport) -> bool:
    """Whether a build ended before its packages were known: refused, or found in the storage."""
    return report.state is State.FOUND or (report.state is State.FAILED and report.packages is None)


def _note(report: BuildReport, event: BuildEvent, now: float) -> None:  # noqa: C901, PLR0912 -- a case each
    match event:
        case Requested() | NamesClashed():
            pass
        case Queued(position):
            if report.position is None:
                report.enter("queued", now)
            report.position = position
        case Started():
            report.state, report.position = State.RUNNING, None
            report.enter("evaluate", now)
        case Evaluated(packages):
            report.packages = len(packages)
            report.enter("realise", now)
        case Fetching(done, expected):
            report.fetched, report.to_fetch = done, expected
        case Building(derivations, done):
            report.building, report.built = list(derivations), done
        case LogLines(lines, dropped):
            report.dropped += dropped
            for derivation, text in lines:
                report.write(derivation, text)
        case Realised(paths, size):
            report.paths, report.size, report.building = paths, size, []
            report.enter("group", now)
        case Grouped(layers):
            report.layers = layers
            report.enter("pack", now)
        case LayerPacked(layer):
            report.packed += 1
            report.packed_bytes += layer.descriptor.size
        case LayerReused(layer):
            report.reused += 1
            report.reused_bytes += layer.descriptor.size
        case LayersComplete():
            report.enter("store", now)
        case Stored(manifest) | Reused(manifest):
            report.manifest = str(manifest)
            _end(report, State.DONE if isinstance(event, Stored) else State.FOUND, now)
        case Failed(error):
            report.error = str(error)
            _end(report, State.FAILED, now)


def _end(report: BuildReport, state: State, now: float) -> None:
    report.leave(now)
    report.state, report.ended, report.position, report.building = state, now, None, []
