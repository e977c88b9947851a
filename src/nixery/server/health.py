"""Liveness, readiness and metrics: ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

import structlog

from nixery.errors import NixeryError
from nixery.server.errors import errors_body
from nixery.server.http import BytesResponse, Handler, Request, Response, json_content
from nixery.telemetry.metrics import Metrics

PATHS = frozenset({"/healthz", "/readyz"})
METRICS = "/metrics"

# Seconds for which a result is cached, and after which a check counts as failed.
_CACHE_TTL = 1.0
_CHECK_TIMEOUT = 5.0

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}

Check = Callable[[], Awaitable[object]]
Warn = Callable[[], str]

_log = structlog.get_logger("nixery.health")


class Health:
    """The routes for operators, restarts and load balancing.

    Args:
        checks: by name; a check that raises a ``NixeryError`` fails, with the error's message as its result.
        metrics: of the process. They contain no names of images or clients.
        clock: seconds; only differences matter.
        warnings: by name; problems that do not make the server unready. An empty text is none.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        warnings: Mapping[str, Warn] | None = None,
    ) -> None:
        self._checks = checks
        self._warnings = warnings or {}
        self._metrics = metrics
        self._clock = clock
        self._found: Mapping[str, str] = {}
        self._warned: Mapping[str, str] = {}
        self._until = 0.0
        self._logged: frozenset[str] = frozenset()
        self._checking = asyncio.Lock()

    def admin_routes(self) -> Mapping[str, Handler]:
        """Routes of a listener that only operators reach."""
        return {
            "/healthz": _read_only(self.live),
            "/readyz": _read_only(self.ready),
            METRICS: _read_only(self.metrics),
        }

    def public_routes(self, *, private: bool) -> Mapping[str, Handler]:
        """Routes of a listener that clients reach.

        Args:
            private: whether only this machine reaches the listener. Then requests that no proxy forwarded see
                the results of the checks, and metrics.
        """

        async def ready(request: Request) -> BytesResponse:
            return await self.ready(request, details=private and not request.forwarded)

        here = _read_only(self.metrics)

        async def metrics(request: Request) -> Response:
            return await here(request) if private and not request.forwarded else _metrics_moved()

        return {"/healthz": _read_only(self.live), "/readyz": _read_only(ready), METRICS: metrics}

    async def live(self, _: Request) -> BytesResponse:
        """Answer that the event loop runs, the only failure that a restart fixes."""
        return BytesResponse(200, b'{"status": "ok"}', _HEADERS)

    async def ready(self, _: Request, *, details: bool = True) -> BytesResponse:
        """Answer 200 if every check passes, else 503. Logs a change of the failed checks, and of the warnings.

        Args:
            details: whether the answer has the result of each check, and the warnings.
        """
        async with self._checking:
            if self._clock() >= self._until:
                # Not on behalf of the requesting client: its exhausted share says nothing about the server.
                loop = asyncio.get_running_loop()
                found = await asyncio.gather(
                    *(loop.create_task(_outcome(check), context=Context()) for check in self._checks.values())
                )
                self._found = dict(zip(self._checks, found, strict=True))
                await asyncio.wait({loop.create_task(self._warn(), context=Context())})
                self._until = self._clock() + _CACHE_TTL
        failed = {name: outcome for name, outcome in self._found.items() if outcome != "ok"}
        if failed.keys() != self._logged:
            if failed:
                _log.warning("not ready", checks=failed)
            else:
                _log.info("ready again")
            self._logged = frozenset(failed)
        document: dict[str, object] = {"status": "not ready" if failed else "ready"}
        if details:
            document["checks"] = self._found
            if self._warned:
                document["warnings"] = self._warned
        return BytesResponse(503 if failed else 200, json_content(document), _HEADERS)

    async def _warn(self) -> None:
        """Collect the warnings in a task, whose context is that of all work that they start."""
        found = {name: said for name, warn in self._warnings.items() if (said := warn())}
        if found.keys() != self._warned.keys():
            if found:
                _log.warning("ready, with warnings", warnings=found)
            else:
                _log.info("no warnings any more")
        self._warned = found

    async def metrics(self, _: Request) -> BytesResponse:
        """Answer with the metrics in Prometheus's format."""
        headers = {"Content-Type": self._metrics.content_type, "Cache-Control": "no-store"}
        return BytesResponse(200, self._metrics.text(), headers)


def _read_only(handler: Callable[[Request], Awaitable[Response]]) -> Handler:
    async def answer(request: Request) -> Response:
        if request.method in {"GET", "HEAD"}:
            return await handler(request)
        message = "method not allowed: use GET or HEAD"
        return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})

    return answer


def _metrics_moved() -> BytesResponse:
    message = "metrics are not served on this port: use the port that NIXERY_ADMIN_PORT sets"
    return errors_body(404, "UNSUPPORTED", message)


async def _outcome(check: Check) -> str:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT):
            await check()
    except NixeryError as error:
        return str(error)
    except TimeoutError:
        return f"the check timed out after {_CHECK_TIMEOUT:g} seconds"
    return "ok"
