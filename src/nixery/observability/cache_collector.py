"""The counts of caches, read when somebody asks for metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from nixery.cache_counts import CacheCounts


class CacheCollector(Collector):
    """Hits and misses of caches.

    Args:
        caches: by what they keep.
    """

    def __init__(self, caches: Mapping[str, CacheCounts]) -> None:
        self._caches = caches

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        hits = CounterMetricFamily("nixery_cache_hits", "What was asked for and known.", labels=("cache",))
        misses = CounterMetricFamily(
            "nixery_cache_misses", "What was asked for and had to be made or fetched.", labels=("cache",)
        )
        for cache, counts in self._caches.items():
            hits.add_metric((cache,), counts.hits)
            misses.add_metric((cache,), counts.misses)
        yield from (hits, misses)
