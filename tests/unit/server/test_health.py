"""Liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from nixery.errors import StorageError
from nixery.server import health as module
from nixery.server.health import METRICS, Health
from nixery.server.http import BytesResponse, Request
from nixery.telemetry.metrics import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Check:
    """Passes, or fails with a message; counts its runs."""

    def __init__(self) -> None:
        self.failure = ""
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.failure:
            raise StorageError(self.failure)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def health(check: Check, clock: Clock) -> Health:
    return Health({"storage": check}, Metrics(), clock)


async def ask(
    health: Health, path: str, method: str = "GET", *, private: bool = True, forwarded: bool = False
) -> BytesResponse:
    handler = health.public_routes(private=private)[path]
    answer = await handler(Request(method, path, forwarded=forwarded))
    assert isinstance(answer, BytesResponse)
    return answer


async def test_a_server_whose_checks_pass_is_ready(health: Health) -> None:
    answer = await ask(health, "/readyz")
    assert (answer.status, json.loads(answer.content)) == (
        200,
        {"status": "ready", "checks": {"storage": "ok"}},
    )


async def test_a_failed_check_makes_the_server_unready_but_not_dead(health: Health, check: Check) -> None:
    check.failure = "no room"
    ready, live = await ask(health, "/readyz"), await ask(health, "/healthz")
    assert (ready.status, json.loads(ready.content)["checks"]) == (503, {"storage": "no room"})
    assert (live.status, json.loads(live.content)) == (200, {"status": "ok"})


async def test_results_are_cached_for_a_second(health: Health, check: Check, clock: Clock) -> None:
    await asyncio.gather(*(ask(health, "/readyz") for _ in range(10)))
    assert check.runs == 1
    clock.now = 1.0
    await ask(health, "/readyz")
    assert check.runs == 2


async def test_only_a_change_of_the_status_is_logged(health: Health, check: Check, clock: Clock) -> None:
    with capture_logs() as lines:
        for number, failure in enumerate(["", "no room", "still no room", "", ""]):
            check.failure, clock.now = failure, number
            await ask(health, "/readyz")
    assert [line["event"] for line in lines] == ["not ready", "ready again"]


async def test_a_check_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK_TIMEOUT", 0)
    answer = await ask(Health({"source": asyncio.Event().wait}, Metrics()), "/readyz")
    assert "timed out" in json.loads(answer.content)["checks"]["source"]


async def test_a_warning_leaves_the_server_ready(check: Check, clock: Clock) -> None:
    found = {"source": "", "other": ""}
    health = Health(
        {"storage": check}, Metrics(), clock, {"source": lambda: found["source"], "other": lambda: ""}
    )
    with capture_logs() as lines:
        for number, found["source"] in enumerate(["", "no route to host", "no route to host", ""]):
            clock.now = number
            answer = await ask(health, "/readyz")
            expected = {"warnings": {"source": found["source"]}} if found["source"] else {}
            assert json.loads(answer.content) == {"status": "ready", "checks": {"storage": "ok"}, **expected}
            assert answer.status == 200
    assert [line["event"] for line in lines] == ["ready, with warnings", "no warnings any more"]


async def test_clients_see_no_warnings(check: Check) -> None:
    health = Health({"storage": check}, Metrics(), warnings={"source": lambda: "git.example.org is down"})
    assert json.loads((await ask(health, "/readyz", private=False)).content) == {"status": "ready"}


@pytest.mark.parametrize(("private", "forwarded"), [(False, False), (True, True)])
async def test_clients_see_neither_results_nor_metrics(
    health: Health,
    check: Check,
    private: bool,  # noqa: FBT001 -- pytest's parameter
    forwarded: bool,  # noqa: FBT001 -- likewise
) -> None:
    check.failure = "/srv/store is full"
    ready = await ask(health, "/readyz", private=private, forwarded=forwarded)
    assert (ready.status, json.loads(ready.content)) == (503, {"status": "not ready"})
    metrics = await ask(health, METRICS, private=private, forwarded=forwarded)
    assert metrics.status == 404
    assert b"NIXERY_ADMIN_PORT" in metrics.content


async def test_operators_see_metrics(health: Health) -> None:
    for routes in (health.admin_routes(), health.public_routes(private=True)):
        answer = await routes[METRICS](Request("GET", METRICS))
        assert isinstance(answer, BytesResponse)
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        assert b"# HELP nixery_" in answer.content


@pytest.mark.parametrize("path", ["/healthz", "/readyz", METRICS])
async def test_only_get_and_head_are_allowed(health: Health, path: str) -> None:
    answer = await ask(health, path, "POST")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert (await ask(health, path, "HEAD")).status == 200
