"""Builds as metrics."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nixery.cache_counts import CacheCounts
from nixery.errors import (
    BuildError,
    BuildTimedOut,
    BuildTookTooLong,
    EvaluationFailed,
    NixeryError,
    NixUnusable,
    PackageSetChanged,
    RequestError,
    ShuttingDown,
    SourceUnreachable,
    StorageError,
    TooBusy,
)
from nixery.observability.stages import Stage, StagedBuild
from nixery.pipeline.events import Build, BuildEvent, Failed, Joined, LayerPacked, LayerReused, Reused, Stored

# Seconds: an evaluation takes one, packing a few, Nix may build for minutes.
_BOUNDS = (0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0)

_BUILT, _FOUND, _CANCELLED = "built", "found", "cancelled"

# The first that an error is an instance of.
_OUTCOMES: Mapping[type[NixeryError], str] = {
    RequestError: "unavailable",
    BuildTimedOut: "timed_out",
    BuildTookTooLong: "timed_out",
    EvaluationFailed: "evaluation_failed",
    NixUnusable: "nix_unusable",
    SourceUnreachable: "source_unreachable",
    PackageSetChanged: "package_set_changed",
    BuildError: "failed",
    StorageError: "storage_error",
    TooBusy: "refused",
    ShuttingDown: _CANCELLED,
    NixeryError: "other",
}


class BuildMetrics:
    """A ``BuildObserver`` and a ``StageListener`` that count.

    Attributes:
        layers: layers that were stored already, and those that were packed.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.layers = CacheCounts()
        self._builds = Counter("nixery_builds", "Ended builds.", ("outcome",), registry=registry)
        for outcome in (_BUILT, _FOUND, *_OUTCOMES.values()):
            self._builds.labels(outcome)  # a rate of what was never there could not be told
        self._joined = Counter(
            "nixery_builds_joined", "Requests that waited for a build of another one.", registry=registry
        )
        self._running = Gauge("nixery_builds_running", "Builds that go on.", registry=registry)
        self._queued = Gauge("nixery_builds_queued", "Builds that wait for others.", registry=registry)
        self._seconds = Histogram(
            "nixery_build_stage_duration_seconds",
            "What parts of a build took.",
            ("stage",),
            buckets=_BOUNDS,
            registry=registry,
        )
        for stage in Stage:
            self._seconds.labels(stage.value)
        self._packed = Counter("nixery_packed_bytes", "Bytes of layers, compressed.", registry=registry)

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

    def build_ended(self, build: StagedBuild | None, end: Stored | Reused | Failed | None) -> None:
        """See ``StageListener.build_ended``."""
        if build is not None and build.stage is not Stage.QUEUE:
            self._running.dec()
        self._builds.labels(_outcome(end)).inc()


def _outcome(end: Stored | Reused | Failed | None) -> str:
    match end:
        case None:
            return _CANCELLED
        case Stored():
            return _BUILT
        case Reused():
            return _FOUND
        case Failed(error):
            return next(outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind))
