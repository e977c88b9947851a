"""Health and metrics for operators, and the listeners that serve them."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from nixery.observability.metrics import Metrics
from nixery.server.health import PATHS, Health
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, Response
from nixery.server.rsgi import Handler

METRICS = "/metrics"


class MetricsPage:
    """Metrics for Prometheus. They contain no names of images or clients."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def get(self, request: Request) -> Response:
        """Answer GET and HEAD."""
        if request.method not in ("GET", "HEAD"):
            return errors_body(
                405, "UNSUPPORTED", "method not allowed: use GET or HEAD", headers={"Allow": "GET, HEAD"}
            )
        headers = {"Content-Type": self._metrics.content_type, "Cache-Control": "no-store"}
        return BytesResponse(200, self._metrics.text(), headers)


class Probes:
    """Routes to health and metrics.

    Args:
        health: of the server.
        metrics: of the process.
    """

    def __init__(self, health: Health, metrics: MetricsPage) -> None:
        self._health = health
        self._metrics = metrics

    def admin(self) -> Mapping[str, Handler]:
        """Routes of a listener that only operators reach."""
        return {**dict.fromkeys(PATHS, self._health.answer), METRICS: self._metrics.get}

    def public(self, *, private: bool) -> Mapping[str, Handler]:
        """Routes of a listener that clients reach: liveness and readiness, for restarts and load balancing.

        Args:
            private: whether only this machine reaches the listener. Then it serves everything, except to
                requests from a proxy.
        """
        return {
            **dict.fromkeys(PATHS, self._ready if private else self._health.answer_publicly),
            METRICS: self._metrics_here if private else _metrics_elsewhere,
        }

    async def _ready(self, request: Request) -> Response:
        return await (self._health.answer_publicly if request.forwarded else self._health.answer)(request)

    async def _metrics_here(self, request: Request) -> Response:
        return await (_metrics_elsewhere if request.forwarded else self._metrics.get)(request)


async def _metrics_elsewhere(request: Request) -> Response:  # noqa: ARG001 -- a constant answer
    message = "metrics are not served here; they have a port of their own (NIXERY_ADMIN_PORT)"
    return errors_body(404, "UNSUPPORTED", message)


def is_loopback(address: str | None) -> bool:
    """Whether only this machine reaches a listener; ``None`` means no listener."""
    return address is None or ip_address(address.partition("%")[0]).is_loopback
