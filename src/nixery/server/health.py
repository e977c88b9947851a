"""Health and metrics for operators, and the listeners that serve them.

``/healthz`` and ``/readyz``: whether the process lives, and whether it can do what it is for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from ipaddress import ip_address

import structlog

from nixery.errors import NixeryError
from nixery.server.app import Handler
from nixery.server.errors import errors_body
from nixery.server.http import BytesResponse, Request, Response, json_content
from nixery.telemetry.metrics import Metrics

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


PATHS = frozenset({"/healthz", "/readyz"})

Check = Callable[[], Awaitable[object]]

# Seconds for which an answer is given again, and for which a check may take its time.
_BELIEVED = 1.0
_PATIENCE = 5.0

_log = structlog.get_logger("nixery.health")

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Health:
    """Answers whoever decides about restarts and about traffic.

    Args:
        checks: by the name of what they are about; a check that raises a ``NixeryError`` says why it is not usable.
        clock: seconds; only differences matter.
    """

    def __init__(self, checks: Mapping[str, Check], clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = checks
        self._clock = clock
        self._told: Mapping[str, str] = {}
        self._until = 0.0
        self._found: Mapping[str, str] = {}
        self._looking = asyncio.Lock()

    async def answer(self, request: Request) -> BytesResponse:
        """Answer a request for one of ``PATHS``."""
        return await self._answer(request, details=True)

    async def answer_publicly(self, request: Request) -> BytesResponse:
        """Answer a request for one of ``PATHS`` without the findings, which are for operators only."""
        return await self._answer(request, details=False)

    async def _answer(self, request: Request, *, details: bool) -> BytesResponse:
        if request.method not in {"GET", "HEAD"}:
            return errors_body(
                405, "UNSUPPORTED", "method not allowed: use GET or HEAD", headers={"Allow": "GET, HEAD"}
            )
        return await (self.live() if request.path == "/healthz" else self.ready(details=details))

    async def live(self) -> BytesResponse:
        """Answer that the event loop runs. A restart would help against nothing else."""
        return BytesResponse(200, b'{"status": "ok"}', _HEADERS)

    async def ready(self, *, details: bool = True) -> BytesResponse:
        """Answer 200 if every check passes, else 503; with all results. Logs a change of the status."""
        async with self._looking:
            if self._clock() >= self._until:
                # Not on behalf of the requesting client: its exhausted share says nothing about the server.
                loop = asyncio.get_running_loop()
                found = await asyncio.gather(
                    *(loop.create_task(_outcome(check), context=Context()) for check in self._checks.values())
                )
                self._found = dict(zip(self._checks, found, strict=True))
                self._until = self._clock() + _BELIEVED
        is_ready = all(outcome == "ok" for outcome in self._found.values())
        self._tell()
        document: dict[str, object] = {"status": "ready" if is_ready else "not ready"}
        if details:
            document["checks"] = self._found
        return BytesResponse(200 if is_ready else 503, json_content(document), _HEADERS)

    def _tell(self) -> None:
        failed = {name: outcome for name, outcome in self._found.items() if outcome != "ok"}
        if failed.keys() != self._told.keys():
            if failed:
                _log.warning("not ready", checks=failed)
            else:
                _log.info("ready again")
            self._told = failed


async def _outcome(check: Check) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            await check()
    except NixeryError as error:
        return str(error)
    except TimeoutError:
        return f"it did not answer within {_PATIENCE:g} seconds"
    return "ok"
