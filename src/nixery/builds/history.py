"""The history of builds: a report of each build in progress, and of the last ones that ended, also before a restart."""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from enum import StrEnum
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, Field

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
    Requested,
    Reused,
    Stage,
    Started,
    Stored,
    implied_packages,
    stage_begun_by,
)
from nixery.builds.failures import FailureKind, failure_kind
from nixery.builds.shared_reports import STALE, SharedReports
from nixery.caching import LRUCache, TTLCache
from nixery.errors import LONGEST_MESSAGE, QuotaExceeded, StorageError, TooBusy, derivation_name
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.storage.records import BUILD_PROGRESS, BUILDS, KINDS, CheckedList, RecordStore, decode

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

# Running builds of other servers that are listed.
_KEPT_ELSEWHERE = 200

# Builders of a build whose time is kept, the slowest ones; a report shows no more running ones. Bytes of names with
# the usual time of their builder.
_SLOWEST = 50
_USUAL = 512 * 1024

# Seconds for which a report of another server is taken from memory, running or finished, and for which one that cannot
# be read is not read again: a planted one takes tenths of a second. Bytes of them.
_FRESH, _FRESH_ENDED, _UNREADABLE = 1.0, 30.0, 600.0
_FOUND_BYTES = 8 * 1024 * 1024

# Seconds between two reads of the list of builds of other servers, and for which a request waits for one.
_REFRESH, _PATIENCE = 3.0, 1.0

# The id of a build.
_ID = re.compile(r"[0-9a-f]{20}", re.ASCII)

# Begins the version in the name of a derivation.
_VERSION = re.compile(r"-(?=[0-9])")

_LOST = "the server that built it stopped without a word; request the image again"

# Seconds between two changes that a follower receives, and after which it receives an unchanged report.
_PAUSE = 0.2
_KEEP_ALIVE = 15.0

# Seconds since the epoch, up to the year 9999. Others may have written the record of a report.
Time = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]

# A duration in seconds; likewise.
Seconds = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]

# Numbers that a page can show; likewise.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]

# Texts that a list of builds shows, likewise: a name, a state of the source, an error, and derivations of builders.
_Name = Annotated[str, Field(max_length=4096)]
_Error = Annotated[str, Field(max_length=LONGEST_MESSAGE + 1)]
_Names = Annotated[CheckedList[_Name], Field(max_length=1000)]

_log = structlog.get_logger("nixery.build")


# The name of the first stage in reports.
_QUEUED = "queued"


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


class BuilderReport(BaseModel):
    """A running builder.

    Attributes:
        name: of the derivation, without its hash.
        started: in seconds since the epoch.
        usual: seconds that its last build took, of whatever version; ``None`` if unknown.
    """

    name: _Name
    started: Time
    usual: Seconds | None = None


class BuilderTime(BaseModel):
    """A builder that has ended, and the seconds that it took."""

    name: _Name
    seconds: Seconds


class Line(BaseModel):
    """A line of the log of a builder.

    Attributes:
        number: of the change of the report that added it.
    """

    number: Count
    derivation: _Name
    text: str


class BuildReport(BaseModel):
    """The progress of a build. Sizes are in bytes, times in seconds since the epoch.

    Attributes:
        number: of changes so far.
        name: of the image, without the platform.
        revision: the state of the package source.
        request_id: of the client's request that started it, as in logs and traces.
        tag: that this request named; ``None`` if it is unknown.
        reported: when another server has last written this report; ``None`` for a build of this server.
        usual: seconds that the last build of an image of this name took; ``None`` if unknown.
        position: in the queue; 1 is next.
        starts: when it will have a slot, as estimated.
        packages: how many the image has; ``None`` until they are evaluated, as all that follow.
        implied: those of them that the client did not name.
        paths: store paths in the closure.
        size: of the closure.
        fetched: of ``to_fetch``, from binary caches.
        fetched_paths: of ``to_fetch_paths``; both are 0 while Nix does not count them.
        building: the derivations whose builders run.
        builders: the same builders, with their times.
        built: how many builders have ended.
        to_build: how many there will be; 0 while Nix does not count them.
        slowest: the builders that took longest.
        layers: how many the image will have.
        packed: layers that were packed, and their bytes.
        reused: layers that were already stored, and their bytes.
        log: its last lines.
        dropped: how many earlier lines it has lost.
        manifest: digest of the finished image.
        error: why the build failed.
        failure: the kind of that error; ``None`` in reports of earlier versions.
        failed: the name of the derivation that failed, if one is the cause.
        tail: the last lines of its log.
    """

    id: str
    name: _Name
    platform: _Name
    revision: _Name
    created: Time
    request_id: _Name | None = None
    tag: _Name | None = None
    reported: Time | None = None
    usual: Seconds | None = None
    number: Count = 0
    state: State = State.WAITING
    ended: Time | None = None
    position: Count | None = None
    starts: Time | None = None
    stages: Annotated[CheckedList[StageReport], Field(max_length=1000)] = []
    packages: Count | None = None
    implied: Count | None = None
    paths: Count | None = None
    size: Count | None = None
    fetched: Count = 0
    to_fetch: Count = 0
    fetched_paths: Count = 0
    to_fetch_paths: Count = 0
    building: _Names = []
    builders: Annotated[CheckedList[BuilderReport], Field(max_length=1000)] = []
    built: Count = 0
    to_build: Count = 0
    slowest: Annotated[CheckedList[BuilderTime], Field(max_length=_SLOWEST)] = []
    layers: Count | None = None
    packed: Count = 0
    packed_bytes: Count = 0
    reused: Count = 0
    reused_bytes: Count = 0
    log: Annotated[CheckedList[Line], Field(repr=False, max_length=_LINES)] = []
    dropped: Count = 0
    manifest: _Name | None = None
    error: _Error | None = None
    failure: FailureKind | None = None
    failed: _Name | None = None
    tail: Annotated[CheckedList[_Error], Field(max_length=1000)] = []

    @classmethod
    def of(cls, build: Build, now: float) -> BuildReport:
        """Start the report of a build."""
        return cls(
            id=build.id,
            name=build.request.name,
            platform=str(build.request.platform),
            revision=build.pin.revision,
            request_id=build.request_id,
            tag=build.tag,
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

    @property
    def seconds(self) -> float:
        """The time that the ended build took, without its time in the queue."""
        waited = sum((s.ended or s.started) - s.started for s in self.stages if s.name == _QUEUED)
        return max(0.0, (self.ended or self.created) - self.created - waited)

    def run(self, derivations: Sequence[str], now: float, usual: Callable[[str], float | None]) -> None:
        """Replace the running builders; keep the times of those that have ended."""
        running = {builder.name: builder for builder in self.builders}
        names = [derivation_name(file) for file in derivations[:_SLOWEST]]
        ended = [
            BuilderTime(name=builder.name, seconds=max(0.0, now - builder.started))
            for builder in self.builders
            if builder.name not in names
        ]
        if ended:
            self.slowest = heapq.nlargest(_SLOWEST, [*self.slowest, *ended], key=lambda one: one.seconds)
        self.building = list(derivations[:_SLOWEST])
        self.builders = [
            running.get(name) or BuilderReport(name=name, started=now, usual=usual(name)) for name in names
        ]

    def write(self, derivation: str, text: str) -> None:
        """Add a line to the log, which drops the oldest lines beyond its limits."""
        self.log.append(Line(number=self.number, derivation=derivation, text=text))
        characters = sum(len(line.text) for line in self.log)
        while len(self.log) > _LINES or characters > _CHARACTERS:
            characters -= len(self.log.pop(0).text)
            self.dropped += 1


def stage_name(stage: Stage) -> str:
    """Return the name of a stage in reports, the API and the pages; metrics and traces call the first one ``queue``."""
    return _QUEUED if stage is Stage.QUEUE else stage.value


class BuildHistory:
    """The ``BuildObserver`` that keeps a report of each build, and shares it with the other servers of a storage.

    Args:
        records: of builds; losing one does no harm.
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
        self._shared = SharedReports(records, self._content)
        # Reports that have ended and are not stored yet.
        self._storing: set[str] = set()
        # Builds whose ids clients have while nothing of them is known yet.
        self._announced: set[str] = set()
        # Running builds of other servers, as of the last reading of the list; keys that cannot be read; that reading.
        self._elsewhere: dict[str, BuildReport] = {}
        self._unreadable: set[str] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = float("-inf")
        self._found: TTLCache[str, tuple[BuildReport | None]] = TTLCache(_FOUND_BYTES)
        # Seconds by the name of a derivation without its version, which changes.
        self._usual: LRUCache[str, float] = LRUCache(_USUAL)

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        report = self._reports.get(build.id)
        if (
            isinstance(event, Failed)
            and isinstance(event.error, TooBusy | QuotaExceeded)
            and not (report and report.position)
        ):
            # It never began, and its client has the answer. A rejected crowd must not evict finished builds.
            # But a build that was in the queue and was displaced stays: clients that know its id ask for it.
            if build.id in self._reports:
                self._forget(build.id)
            return
        if report is None:
            if isinstance(event, Reused):
                return  # nothing was built, and no client has its id
            report = self._reports[build.id] = BuildReport.of(build, self._clock())
        report.number += 1
        now = self._clock()
        if isinstance(event, Requested):
            self._announced.add(build.id)
        self._note(report, build, event, now)
        _update(report, event, now)
        if report.is_over and _is_brief(report):
            self._evict_brief()
        elif report.is_over:
            self._storing.add(report.id)
            self._start(self._store(report))
        self._shared.changed(report.id)
        if changed := self._changed.pop(build.id, None):
            changed.set()

    def get(self, build: str) -> BuildReport | None:
        """Return the report of a build in memory; ``None`` if there is none; see ``find``."""
        return self._reports.get(build) or self._elsewhere.get(build)

    async def find(self, build: str) -> BuildReport | None:
        """Return the report of a build of any server of the storage; ``None`` if the build is not known.

        That of another server is some seconds old while the build runs.
        """
        report = self._reports.get(build)
        if report is not None or _ID.fullmatch(build) is None:
            return report
        found = self._found.get(build)
        if found is None:
            content: bytes | None = None
            try:
                content = await self._shared.read(build)
            except StorageError as error:
                _log.warning("cannot read the report of a build", reason=str(error))
            report = self._read(build, content)
            found = (report,)
            if report is None:
                self._found.put(build, found, 0, _FRESH if content is None else _UNREADABLE)
            else:
                seconds = _FRESH_ENDED if report.is_over else _FRESH
                self._found.put(build, found, len(content or b""), seconds)
        return self._reports.get(build) or found[0]

    async def refresh(self) -> None:
        """Read the list of builds of the other servers, unless that was done seconds ago; wait a second at most."""
        if self._closed:
            return
        if self._refreshing is None or self._refreshing.done():
            if time.monotonic() - self._refreshed < _REFRESH:
                return
            self._refreshing = self._start(self._read_others())
        await asyncio.wait({self._refreshing}, timeout=_PATIENCE)

    async def shared(self, builds: Sequence[str]) -> None:
        """Wait until the other servers can find new builds, for two seconds at most."""
        await self._shared.written(builds)

    def recent(self) -> Sequence[BuildReport]:
        """Return all reports in memory, the latest build first; see ``refresh``."""
        reports = {**self._elsewhere, **self._reports}
        return [reports[key] for key in sorted(reports, reverse=True)]

    async def follow(
        self, build: str, after: int
    ) -> AsyncGenerator[tuple[BuildReport, Sequence[Line]], None]:
        """Yield a build's changes until it ends, a few times a second at most, and sometimes an unchanged report.

        Args:
            build: its id, also of another server of the storage; an unknown build has no changes.
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
        async for change in self._follow_elsewhere(build, after):
            yield change

    async def _follow_elsewhere(
        self, build: str, after: int
    ) -> AsyncGenerator[tuple[BuildReport, Sequence[Line]], None]:
        last, silence = -1, 0.0
        while (report := await self.find(build)) is not None:
            if report.number != last or silence >= _KEEP_ALIVE or report.is_over:
                last, silence = report.number, 0.0
                yield report, [line for line in report.log if line.number > after]
                after = report.number
            if report.is_over or self._closed:
                return
            await asyncio.sleep(_FRESH)
            silence += _FRESH

    def start(self) -> None:
        """Read the stored reports, in the background."""
        self._start(self._load())

    async def close(self) -> None:
        """Finish writing reports, and end all followers."""
        self._closed = True
        for changed in self._changed.values():
            changed.set()
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self._shared.close()

    def _note(self, report: BuildReport, build: Build, event: BuildEvent, now: float) -> None:
        """Record what needs more than the report: the request, and the times of earlier builds."""
        match event:
            case Started():
                report.usual = self._usual_time_of_image(report)
            case Evaluated(packages):
                report.implied = implied_packages(build.request, packages)
            case Building(derivations, done, expected):
                report.run(derivations, now, self._usual_time)
                report.built, report.to_build = done, expected
            case Realised():
                report.run((), now, self._usual_time)
                self._learn(report)  # all builders have succeeded
            case _:
                pass

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    def _forget(self, build: str) -> None:
        self._reports.pop(build, None)
        self._storing.discard(build)
        self._announced.discard(build)
        self._shared.changed(build)

    def _content(self, build: str) -> tuple[bytes, bool] | None:
        """Return the report for the other servers; ``None`` for one that they find among the finished ones."""
        report = self._reports.get(build)
        if report is not None and report.packages is None and build not in self._announced:
            return None  # clients can pull any number of names that do not exist
        if report is None or (report.is_over and not _is_brief(report) and build not in self._storing):
            return None
        shared = report.model_copy(update={"reported": self._clock()})
        return shared.model_dump_json().encode(), not report.is_over

    def _read(self, build: str, content: bytes | None) -> BuildReport | None:
        report = decode(BuildReport.model_validate_json, content)
        if report is None or report.id != build or (report.reported is None and not report.is_over):
            return None  # torn, or of another version
        now = self._clock()
        if report.reported is not None and not report.is_over and now - report.reported > STALE:
            report.error, report.number = _LOST, report.number + 1
            _end(report, State.FAILED, report.reported)
        return report

    async def _read_others(self) -> None:
        try:
            listed = await self._latest(BUILD_PROGRESS, _KEPT_ELSEWHERE)
            elsewhere: dict[str, BuildReport] = {}
            for key in listed:
                if key in self._reports:
                    continue
                known = self._elsewhere.get(key)
                report = known if known is not None and known.is_over else await self.find(key)
                if report is not None:
                    elsewhere[key] = report
            self._elsewhere = elsewhere
            await self._load_finished()
        except StorageError as error:
            _log.warning("cannot read the builds of other servers", reason=str(error))
        self._refreshed = time.monotonic()

    async def _latest(self, kind: str, most: int) -> list[str]:
        keys: list[str] = []
        async for listed in self._records.scan(kind):
            # Ids are in the order in which builds began.
            heapq.heappush(keys, listed.key)
            if len(keys) > most:
                heapq.heappop(keys)
        return keys

    async def _load_finished(self) -> None:
        keys = await self._latest(BUILDS, _KEPT + _KEPT_FAILED)
        self._unreadable &= set(keys)
        for key in keys:
            if key in self._reports or key in self._unreadable:
                continue
            content = await self._records.get(BUILDS, key)
            report = decode(BuildReport.model_validate_json, content)
            is_finished = report is not None and report.id == key and report.is_over
            if report is not None and is_finished and not _is_brief(report):
                self._reports.setdefault(key, report)
                self._elsewhere.pop(key, None)
                self._learn(report)
            elif content is not None:
                self._unreadable.add(key)  # torn, of another version, or one that no server stores
        async with self._lock:
            await self._evict()

    def _learn(self, report: BuildReport) -> None:
        for one in report.slowest:
            key = _without_version(one.name)
            self._usual.put(key, one.seconds, len(key))

    def _usual_time(self, name: str) -> float | None:
        return self._usual.get(_without_version(name))

    def _usual_time_of_image(self, build: BuildReport) -> float | None:
        same = (
            key
            for key, report in self._reports.items()
            if report.state is State.DONE and (report.name, report.platform) == (build.name, build.platform)
        )
        latest = max(same, default=None)
        return None if latest is None else self._reports[latest].seconds

    async def _load(self) -> None:
        try:
            await self._load_finished()
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
            return  # its last progress stays, which has the same content
        self._storing.discard(report.id)
        self._shared.changed(report.id)

    async def _evict(self) -> None:
        ended = [report for report in self._reports.values() if report.is_over and not _is_brief(report)]
        failed = {report.id for report in ended if report.state is State.FAILED}
        others = {report.id for report in ended} - failed
        for ids, most in ((failed, _KEPT_FAILED), (others, _KEPT)):
            for key in sorted(ids)[:-most]:
                self._forget(key)
                await self._records.delete(BUILDS, key)

    def _evict_brief(self) -> None:
        # At once: a client that causes many of them must not wait for the storage to bound their number.
        brief = [report for report in self._reports.values() if _is_brief(report)]
        for state, most in ((State.FAILED, _KEPT_REFUSED), (State.FOUND, _KEPT_FOUND)):
            for key in sorted(report.id for report in brief if report.state is state)[:-most]:
                self._forget(key)


def _is_brief(report: BuildReport) -> bool:
    """Whether a build ended before its packages were known: refused, or found in the storage."""
    return report.state is State.FOUND or (report.state is State.FAILED and report.packages is None)


def _update(report: BuildReport, event: BuildEvent, now: float) -> None:  # noqa: C901, PLR0912 -- a case each
    stage = stage_begun_by(event)
    if stage is not None:
        report.enter(stage, now)
    match event:
        case Queued(position, wait):
            report.position, report.starts = position, None if wait is None else now + wait
        case Started():
            report.state, report.position, report.starts = State.RUNNING, None, None
        case Evaluated(packages):
            report.packages = len(packages)
        case Fetching(done, expected, paths, expected_paths):
            report.fetched, report.to_fetch = done, expected
            report.fetched_paths, report.to_fetch_paths = paths, expected_paths
        case LogLines(lines, dropped):
            report.dropped += dropped
            for derivation, text in lines:
                report.write(derivation, text)
        case Realised(paths, size):
            report.paths, report.size = paths, size
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
            culprit = getattr(error, "derivation", None)
            report.failed = derivation_name(culprit) if culprit else None
            report.tail = list(getattr(error, "log_tail", ()))
            if culprit and not report.to_build:
                # Without Nix's count, the builder that failed is counted, too.
                report.built = max(0, report.built - 1)
            _end(report, State.FAILED, now)


def _end(report: BuildReport, state: State, now: float) -> None:
    report.leave(now)
    report.state, report.ended, report.position, report.starts = state, now, None, None
    report.building, report.builders = [], []


def _without_version(name: str) -> str:
    """Return a name of a derivation up to its version, as Nix's ``parseDrvName`` does."""
    return _VERSION.split(name, maxsplit=1)[0]
