"""``/healthz`` and ``/readyz``: whether the process lives, and whether it can do what it is for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

import structlog

from nixery.errors import NixeryError
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse, json_content

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
