"""All metrics, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from nixery import __version__
from nixery.cache_counts import CacheCounts
from nixery.observability.build_metrics import BuildMetrics
from nixery.observability.cache_collector import CacheCollector
from nixery.observability.counted_storage import StorageErrors
from nixery.observability.nix_processes import NixProcesses
from nixery.observability.request_counts import RequestCounts


class Metrics:
    """A registry of metrics of its own, and those who fill it.

    Attributes:
        requests: counts them.
        builds: observes them.
        storage_errors: counts them.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        # Twice as many series otherwise, for a date that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.requests = RequestCounts()
        self._registry.register(self.requests)
        self.builds = BuildMetrics(self._registry)
        self.storage_errors = StorageErrors(self._registry)
        self._registry.register(NixProcesses())
        Info("nixery_build", "The program that runs.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def watch(self, caches: Mapping[str, CacheCounts]) -> None:
        """Tell of caches, by what they keep, and of the layers that were stored already."""
        self._registry.register(CacheCollector({**caches, "layer": self.builds.layers}))

    def text(self) -> bytes:
        """Write everything down, as ``content_type`` says. Takes a few milliseconds."""
        return generate_latest(self._registry)
