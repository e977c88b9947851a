"""``/metrics``."""

from __future__ import annotations

from nixery.observability.metrics import Metrics
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, Response


class MetricsPage:
    """What Prometheus asks for. There are no names in it, of images or of anybody."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def get(self, request: Request) -> Response:
        """Answer GET and HEAD."""
        if request.method not in ("GET", "HEAD"):
            return errors_body(405, "UNSUPPORTED", "metrics are for reading", headers={"Allow": "GET, HEAD"})
        headers = {"Content-Type": self._metrics.content_type, "Cache-Control": "no-store"}
        return BytesResponse(200, self._metrics.text(), headers)
