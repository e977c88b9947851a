"""Requests, counted as plain numbers: the hot path has no time for more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Seconds: answers from memory, from the store, and those that waited for a build.
_BOUNDS = (0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)

_METHODS = frozenset({"GET", "HEAD", "POST"})


class _Counted:
    """Requests of one method, class of route and status."""

    __slots__ = ("buckets", "seconds", "served")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.served = 0
        self.buckets = [0] * (len(_BOUNDS) + 1)


class RequestCounts(Collector):
    """Requests by method, class of route and status; durations and bytes by class of route."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str, int], _Counted] = {}

    def add(self, method: str, route: str, status: int, seconds: float, served: int) -> None:
        """Count an answered request.

        Args:
            method: as the client wrote it; those that are never answered are one.
            route: its class; there have to be few.
            status: of the answer.
            seconds: until the answer was given to the web server, which still has to send it.
            served: bytes of the body.
        """
        counted = self._counted.get((method, route, status))
        if counted is None:
            key = (method if method in _METHODS else "other", route, status)
            counted = self._counted.setdefault(key, _Counted())
        counted.seconds += seconds
        counted.served += served
        counted.buckets[bisect_left(_BOUNDS, seconds)] += 1

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
            "From a request's head to its answer, without the time that sending takes.",
            labels=("route",),
        )
        served = CounterMetricFamily(
            "nixery_served_bytes", "Bytes of bodies, as if all of them had been received.", labels=("route",)
        )
        for route, counts in by_route.items():
            durations.add_metric((route,), list(_cumulative(counts.buckets)), counts.seconds)
            served.add_metric((route,), counts.served)
        yield from (requests, durations, served)


def _cumulative(buckets: list[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, number in zip((*_BOUNDS, float("inf")), buckets, strict=True):
        total += number
        yield "+Inf" if bound == float("inf") else repr(bound), total
