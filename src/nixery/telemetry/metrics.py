"""All metrics of the server, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from nixery import __version__
from nixery.builds.events import (
    Build,
    BuildEvent,
    Failed,
    Joined,
    LayerPacked,
    LayerReused,
    Reused,
    Stage,
    Stored,
)
from nixery.builds.index_records import Progress
from nixery.caching import CacheCounts
from nixery.errors import (
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildError,
    EvaluationFailed,
    NixeryError,
    NixTimedOut,
    NixUnusable,
    PackageSetChanged,
    QuotaExceeded,
    RequestError,
    ShuttingDown,
    SourceUnreachable,
    StorageError,
    TooBusy,
)
from nixery.telemetry.stages import BuildEnd, StagedBuild
from nixery.telemetry.storage import StorageErrors

# Durations of answers, in seconds: from memory, from the storage, and after a build.
_ANSWERS = (0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)

# Durations of stages, in seconds: an evaluation takes one, packing a few, and Nix may build for minutes.
_STAGES = (0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0)

_METHODS = frozenset({"GET", "HEAD", "POST"})

_PROC = Path("/proc")

_BUILT, _FOUND, _CANCELLED = "built", "found", "cancelled"

# By class of error; the first class that an error is an instance of.
_OUTCOMES: Mapping[type[NixeryError], str] = {
    RequestError: "unavailable",
    NixTimedOut: "timed_out",
    BuildDeadlineExceeded: "timed_out",
    EvaluationFailed: "evaluation_failed",
    NixUnusable: "nix_unusable",
    SourceUnreachable: "source_unreachable",
    PackageSetChanged: "package_set_changed",
    BuildError: "failed",
    StorageError: "storage_error",
    TooBusy: "refused",
    QuotaExceeded: "refused",
    BuildCancelled: _CANCELLED,
    ShuttingDown: _CANCELLED,
    NixeryError: "other",
}


class Metrics:
    """The metrics of a server, in a separate registry.

    Attributes:
        requests: counts requests.
        builds: observes builds.
        storage_errors: counts errors of the storage.
        nix_started: counts the start of a program of Nix for a request.
        nix_index_started: the same for the package index.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        # Otherwise each counter has another series, for the date of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.requests = RequestCounts()
        self._registry.register(self.requests)
        self.builds = BuildMetrics(self._registry)
        self.storage_errors = StorageErrors(self._registry)
        self._registry.register(NixProcesses())
        started = Counter(
            "nixery_nix_processes",
            "Commands of Nix that were started, for requests and for the package index.",
            ("program", "purpose"),
            registry=self._registry,
        )
        # A series that begins with 0 says that nothing was started.
        for program, purpose in (
            ("nix-instantiate", "request"),
            ("nix-store", "request"),
            ("nix-instantiate", "index"),
        ):
            started.labels(program, purpose)
        self.nix_started = partial(_count_start, started, "request")
        self.nix_index_started = partial(_count_start, started, "index")
        Info("nixery_build", "Version of the server.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def watch(self, caches: Mapping[str, CacheCounts]) -> None:
        """Add caches, by the name of their contents, and the reuse of layers."""
        self._registry.register(CacheCollector({**caches, "layer": self.builds.layers}))

    def watch_index(self, progress: Callable[[], Progress | None]) -> None:
        """Add the progress of the package index."""
        self._registry.register(IndexCollector(progress))

    def watch_certificate(self, expires: Callable[[], float | None]) -> None:
        """Add the end of the server's certificate, in seconds since the epoch; ``None`` without TLS."""
        self._registry.register(CertificateCollector(expires))

    def families(self) -> Iterator[Metric]:
        """Yield all metrics with their current values."""
        yield from self._registry.collect()

    def text(self) -> bytes:
        """Return all metrics in the format of ``content_type``. Takes a few milliseconds."""
        return generate_latest(self._registry)


class _Counted:
    """Requests of one method, class of route and status."""

    __slots__ = ("buckets", "seconds", "served")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.served = 0
        self.buckets = [0] * (len(_ANSWERS) + 1)


class RequestCounts(Collector):
    """Requests by method, class of route and status; durations and bytes by class of route.

    Plain numbers, since the hot path has no time for Prometheus's locks.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str, int], _Counted] = {}

    def add(self, method: str, route: str, status: int, seconds: float, served: int) -> None:
        """Count an answered request.

        Args:
            method: as the client sent it; methods that no route accepts are counted together.
            route: its class, one of few.
            status: of the answer.
            seconds: until the web server had the answer, which it still has to send.
            served: bytes of the body.
        """
        counted = self._counted.get((method, route, status))
        if counted is None:
            key = (method if method in _METHODS else "other", route, status)
            counted = self._counted.setdefault(key, _Counted())
        counted.seconds += seconds
        counted.served += served
        counted.buckets[bisect_left(_ANSWERS, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        requests = CounterMetricFamily(
            "nixery_http_requests", "Answered requests.", labels=("method", "route", "status")
        )
        by_route: dict[str, _Counted] = {}
        for (method, route, status), counted in self._counted.items():
            requests.add_metric((method, route, str(status)), sum(counted.buckets))
            total = by_route.setdefault(route, _Counted())
            total.seconds += counted.seconds
            total.served += counted.served
            total.buckets = [one + other for one, other in zip(total.buckets, counted.buckets, strict=True)]
        durations = HistogramMetricFamily(
            "nixery_http_request_duration_seconds",
            "Seconds from the head of a request to its answer, without sending it.",
            labels=("route",),
        )
        served = CounterMetricFamily(
            "nixery_served_bytes",
            "Bytes of response bodies, whether or not clients received all of them.",
            labels=("route",),
        )
        for route, counts in by_route.items():
            durations.add_metric((route,), list(_cumulative(counts.buckets)), counts.seconds)
            served.add_metric((route,), counts.served)
        yield from (requests, durations, served)


def _cumulative(buckets: list[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, number in zip((*_ANSWERS, float("inf")), buckets, strict=True):
        total += number
        yield "+Inf" if bound == float("inf") else repr(bound), total


class BuildMetrics:
    """The ``BuildObserver`` and ``StageListener`` that count builds.

    Attributes:
        layers: layers that were already stored (hits), and layers that were packed (misses).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.layers = CacheCounts()
        self._builds = Counter("nixery_builds", "Builds that ended.", ("outcome",), registry=registry)
        for outcome in (_BUILT, _FOUND, *_OUTCOMES.values()):
            self._builds.labels(outcome)  # a rate needs a series from the start
        self._joined = Counter(
            "nixery_builds_joined", "Requests that joined the build of another request.", registry=registry
        )
        self._running = Gauge("nixery_builds_running", "Builds in progress.", registry=registry)
        self._queued = Gauge("nixery_builds_queued", "Builds that wait for a slot.", registry=registry)
        self._seconds = Histogram(
            "nixery_build_stage_duration_seconds",
            "Seconds that a stage of a build took.",
            ("stage",),
            buckets=_STAGES,
            registry=registry,
        )
        for stage in Stage:
            self._seconds.labels(stage.value)
        self._packed = Counter(
            "nixery_packed_bytes", "Compressed bytes of layers that were packed.", registry=registry
        )

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: ARG002 -- names are no labels
        """See ``BuildObserver.observe``."""
        match event:
            case Joined():
                self._joined.inc()
            case LayerReused():
                self.layers.hits += 1
            case LayerPacked(layer):
                self.layers.misses += 1
                self._packed.inc(layer.descriptor.size)

    def stage_began(self, build: StagedBuild) -> None:
        """See ``StageListener.stage_began``."""
        if build.stage is Stage.QUEUE:
            self._queued.inc()
        elif build.stage is Stage.EVALUATE:
            self._running.inc()

    def stage_ended(self, build: StagedBuild, seconds: float) -> None:
        """See ``StageListener.stage_ended``."""
        self._seconds.labels(build.stage.value).observe(seconds)
        if build.stage is Stage.QUEUE:
            self._queued.dec()

    def build_ended(self, build: StagedBuild | None, end: BuildEnd) -> None:
        """See ``StageListener.build_ended``."""
        if build is not None and build.stage is not Stage.QUEUE:
            self._running.dec()
        self._builds.labels(_outcome(end)).inc()


def _outcome(end: BuildEnd) -> str:
    match end:
        case None:
            return _CANCELLED
        case Stored():
            return _BUILT
        case Reused():
            return _FOUND
        case Failed(error):
            return next(outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind))


class CacheCollector(Collector):
    """Hits and misses of caches.

    Args:
        caches: by the name of their contents.
    """

    def __init__(self, caches: Mapping[str, CacheCounts]) -> None:
        self._caches = caches

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        hits = CounterMetricFamily("nixery_cache_hits", "Look-ups that a cache answered.", labels=("cache",))
        misses = CounterMetricFamily(
            "nixery_cache_misses", "Look-ups whose result had to be computed or fetched.", labels=("cache",)
        )
        for cache, counts in self._caches.items():
            hits.add_metric((cache,), counts.hits)
            misses.add_metric((cache,), counts.misses)
        yield from (hits, misses)


class IndexCollector(Collector):
    """The progress of the package index.

    Args:
        progress: of the state that is or was evaluated last.
    """

    def __init__(self, progress: Callable[[], Progress | None]) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        family = GaugeMetricFamily(
            "nixery_index_attributes",
            "Attributes of the package set that was indexed last: evaluated, failed, or waiting.",
            labels=("state",),
        )
        progress = self._progress()
        if progress is not None:
            family.add_metric(("evaluated",), progress.evaluated - progress.failed)
            family.add_metric(("failed",), progress.failed)
            family.add_metric(("waiting",), progress.attributes - progress.evaluated)
        yield family


class CertificateCollector(Collector):
    """The end of the certificate that the server serves, which may be renewed."""

    def __init__(self, expires: Callable[[], float | None]) -> None:
        self._expires = expires

    def collect(self) -> Iterator[Metric]:
        """Read the present one."""
        family = GaugeMetricFamily(
            "nixery_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the server expires, in seconds since the epoch; no series without TLS.",
        )
        expires = self._expires()
        if expires is not None:
            family.add_metric((), expires)
        yield family


class NixProcesses(Collector):
    """Running commands of Nix that this process started, read from ``/proc``; without their own children."""

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield GaugeMetricFamily("nixery_nix_processes", "Running commands of Nix.", value=_count())


def _count_start(counter: Counter, purpose: str, program: str) -> None:
    counter.labels(program, purpose).inc()


def _count() -> int:
    """Count children by name; a child may end meanwhile."""
    number = 0
    for task in (_PROC / "self" / "task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    number += (_PROC / child / "comm").read_text().startswith("nix")
    return number
