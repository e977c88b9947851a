"""The history of builds: a report of each build in progress, and of the last ones that ended, also before a restart."""

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
    Queued,
    Realised,
    Reused,
    Stage,
    Started,
    Stored,
    stage_begun_by,
)
from nixery.builds.failures import FailureKind, failure_kind
from nixery.errors import LONGEST_MESSAGE, StorageError, TooBusy
from nixery.image.name import ImageRequest
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.storage.records import BUILDS, KINDS, RecordStore

# The end of a build's log that is kept: lines, and characters in them.
_LINES = 500
_CHARACTERS = 64 * 1024

# Finished builds that are kept: those with an image, those that failed, and those that ended before their
# packages were known: refused, or found in the storage. A client can cause any number of the last two kinds
# within a minute. So they must not evict the others, and are kept in memory only.
_KEPT = 200
_KEPT_FAILED = 100
_KEPT_REFUSED = 50
_KEPT_FOUND = 50

# Seconds between two changes that a follower receives, and after which it receives an unchanged report.
_PAUSE = 0.2
_KEEP_ALIVE = 15.0

# Seconds since the epoch, up to the year 9999. Others may have written the record of a report.
Time = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]

# Numbers that a page can show; likewise.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]

# Texts that a list of builds shows, likewise: a name, a state of the source, an error, and derivations of builders.
_Name = Annotated[str, Field(max_length=4096)]
_Error = Annotated[str, Field(max_length=LONGEST_MESSAGE + 1)]
_Names = Annotated[list[_Name], Field(max_length=1000)]

_log = structlog.get_logger("nixery.build")


class State(StrEnum):
    """The state of a build."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FOUND = "found"  # another server had built it meanwhile
    FAILED = "failed"


class StageReport(BaseModel):
    """A stage of a build; times are in seconds since the epoch."""

    name: _Name
    started: Time
    ended: Time | None = None


class Line(BaseModel):
    """A line of the log of a builder.

    Attributes:
        number: of the change of the report that added it.
    """

    number: Count
    derivation: str
    text: str


class BuildReport(BaseModel):
    """The progress of a build. Sizes are in bytes, times in seconds since the epoch.

    Attributes:
        number: of changes so far.
        name: of the image, without the platform.
        revision: the state of the package source.
        request_id: of the client's request that started it, as in logs and traces.
        position: in the queue; 1 is next.
        packages: how many were requested; ``None`` until they are evaluated, as all that follow.
        paths: store paths in the closure.
        size: of the closure.
        fetched: of ``to_fetch``, from binary caches.
        building: the derivations whose builders run.
        built: how many builders have ended.
        layers: how many the image will have.
        packed: layers that were packed, and their bytes.
        reused: layers that were already stored, and their bytes.
        log: its last lines.
        dropped: how many earlier lines it has lost.
        manifest: digest of the finished image.
        error: why the build failed.
        failure: the kind of that error; ``None`` in reports of earlier versions.
    """

    id: str
    name: _Name
    platform: _Name
    revision: _Name
    created: Time
    request_id: _Name | None = None
    number: Count = 0
    state: State = State.WAITING
    ended: Time | None = None
    position: Count | None = None
    stages: Annotated[list[StageReport], Field(max_length=1000)] = []
    packages: Count | None = None
    paths: Count | None = None
    size: Count | None = None
    fetched: Count = 0
    to_fetch: Count = 0
    building: _Names = []
    built: Count = 0
    layers: Count | None = None
    packed: Count = 0
    packed_bytes: Count = 0
    reused: Count = 0
    reused_bytes: Count = 0
    log: Annotated[list[Line], Field(repr=False)] = []
    dropped: Count = 0
    manifest: _Name | None = None
    error: _Error | None = None
    failure: FailureKind | None = None

    @classmethod
    def of(cls, build: Build, now: float) -> BuildReport:
        """Start the report of a build."""
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
        """Whether the build has ended."""
        return self.ended is not None

    def enter(self, stage: Stage, now: float) -> None:
        """Start a stage, which ends the one before; a build in the same stage stays in it."""
        name = stage_name(stage)
        if not self.stages or self.stages[-1].name != name:
            self.leave(now)
            self.stages.append(StageReport(name=name, started=now))

    def leave(self, now: float) -> None:
        """End the stage."""
        if self.stages and self.stages[-1].ended is None:
            self.stages[-1].ended = now

    def write(self, derivation: str, text: str) -> None:
        """Add a line to the log, which drops the oldest lines beyond its limits."""
        self.log.append(Line(number=self.number, derivation=derivation, text=text))
        characters = sum(len(line.text) for line in self.log)
        while len(self.log) > _LINES or characters > _CHARACTERS:
            characters -= len(self.log.pop(0).text)
            self.dropped += 1


def stage_name(stage: Stage) -> str:
    """Return the name of a stage in reports, the API and the pages; metrics and traces call the first one ``queue``."""
    return "queued" if stage is Stage.QUEUE else stage.value


def image_name(request: ImageRequest) -> str:
    """Return the shortest name of an image, without its platform; of an empty image, the name of its platform."""
    name = "/".join([*(["shell"] if request.shell else []), *request.requested])
    return name or request.platform.architecture.name


class BuildHistory:
    """The ``BuildObserver`` that keeps a report of each build.

    Args:
        records: of builds that have ended; losing one does no harm.
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
            # It never began, and its client has the answer. A rejected crowd must not evict finished builds.
            # But a build that was in the queue and was displaced stays: clients that know its id ask for it.
            self._reports.pop(build.id, None)
            return
        if report is None:
            if isinstance(event, Reused):
                return  # nothing was built, and no client has its id
            report = self._reports[build.id] = BuildReport.of(build, self._clock())
        report.number += 1
        _update(report, event, self._clock())
        if report.is_over and _is_brief(report):
            self._evict_brief()
        elif report.is_over:
            self._start(self._store(report))
        if changed := self._changed.pop(build.id, None):
            changed.set()

    def get(self, build: str) -> BuildReport | None:
        """Return the report of a build; ``None`` if the build is not known."""
        return self._reports.get(build)

    def recent(self) -> Sequence[BuildReport]:
        """Return all reports, the latest build first."""
        return [self._reports[key] for key in sorted(self._reports, reverse=True)]

    async def follow(
        self, build: str, after: int
    ) -> AsyncGenerator[tuple[BuildReport, Sequence[Line]], None]:
        """Yield a build's changes until it ends, a few times a second at most, and sometimes an unchanged report.

        Args:
            build: its id; an unknown build has no changes.
            after: the number of the last change that the follower has; 0 for none.

        Yields:
            The report, and the lines of its log that were added since.
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
                    await asyncio.wait_for(changed.wait(), _KEEP_ALIVE)
                except TimeoutError:
                    continue

    def start(self) -> None:
        """Read the stored reports, in the background."""
        self._start(self._load())

    async def close(self) -> None:
        """Finish writing reports, and end all followers."""
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
                    continue  # torn, or of another version
                if report.id == key and report.is_over:
                    self._reports.setdefault(key, report)
            self._evict_brief()
            async with self._lock:
                await self._evict()
        except StorageError as error:
            _log.warning("cannot read earlier builds", reason=str(error))

    async def _store(self, report: BuildReport) -> None:
        try:
            # One at a time: a build may be evicted before it is written.
            async with self._lock:
                if report.id in self._reports:
                    content = report.model_dump_json().encode()
                    if len(content) <= KINDS[BUILDS].largest:
                        await self._records.put(BUILDS, report.id, content)
                await self._evict()
        except StorageError as error:
            _log.warning("cannot store the report of a build", reason=str(error))

    async def _evict(self) -> None:
        ended = [report for report in self._reports.values() if report.is_over and not _is_brief(report)]
        failed = {report.id for report in ended if report.state is State.FAILED}
        others = {report.id for report in ended} - failed
        for ids, most in ((failed, _KEPT_FAILED), (others, _KEPT)):
            for key in sorted(ids)[:-most]:
                self._reports.pop(key, None)
                await self._records.delete(BUILDS, key)

    def _evict_brief(self) -> None:
        # At once: a client that causes many of them must not wait for the storage to bound their number.
        brief = [report for report in self._reports.values() if _is_brief(report)]
        for state, most in ((State.FAILED, _KEPT_REFUSED), (State.FOUND, _KEPT_FOUND)):
            for key in sorted(report.id for report in brief if report.state is state)[:-most]:
                del self._reports[key]


def _is_brief(report: BuildReport) -> bool:
    """Whether a build ended before its packages were known: refused, or found in the storage."""
    return report.state is State.FOUND or (report.state is State.FAILED and report.packages is None)


def _update(report: BuildReport, event: BuildEvent, now: float) -> None:  # noqa: C901, PLR0912 -- a case each
    stage = stage_begun_by(event)
    if stage is not None:
        report.enter(stage, now)
    match event:
        case Queued(position):
            report.position = position
        case Started():
            report.state, report.position = State.RUNNING, None
        case Evaluated(packages):
            report.packages = len(packages)
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
        case Grouped(layers):
            report.layers = layers
        case LayerPacked(layer):
            report.packed += 1
            report.packed_bytes += layer.descriptor.size
        case LayerReused(layer):
            report.reused += 1
            report.reused_bytes += layer.descriptor.size
        case Stored(manifest) | Reused(manifest):
            report.manifest = str(manifest)
            _end(report, State.DONE if isinstance(event, Stored) else State.FOUND, now)
        case Failed(error):
            report.error, report.failure = str(error), failure_kind(error)
            _end(report, State.FAILED, now)


def _end(report: BuildReport, state: State, now: float) -> None:
    report.leave(now)
    report.state, report.ended, report.position, report.building = state, now, None, []
