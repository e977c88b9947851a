"""Limits on the log lines of clients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context

import pytest
import structlog
from structlog.testing import capture_logs

from nixery.request_context import Client, RequestContext, enter_request
from nixery.telemetry.log_budget import LogBudget
from tests.support.event_loop import eventually


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.budget = LogBudget(lambda: self.now)

    def write(self, client: str | None, lines: int, method: str = "info") -> int:
        """Return how many of the lines are written."""

        def write() -> int:
            if client is not None:
                enter_request(RequestContext("id", Client(client)))
            written = 0
            for _ in range(lines):
                try:
                    self.budget(None, method, {"event": "request"})
                except structlog.DropEvent:
                    continue
                written += 1
            return written

        return Context().run(write)

    def summary(self) -> dict[str, int]:
        with capture_logs() as lines:
            self.budget.summarise()
        assert {line["event"] for line in lines} <= {"log lines suppressed"}
        return {line["client"]: line["lines"] for line in lines}


@pytest.fixture
def world() -> World:
    return World()


def test_lines_beyond_the_budget_of_a_client_are_dropped_and_counted(world: World) -> None:
    assert world.write("greedy", 10_000) == 200
    assert world.write("modest", 10) == 10
    assert world.summary() == {"greedy": 9_800}
    assert world.summary() == {}
    world.now += 1
    assert world.write("greedy", 10_000) == 20


def test_lines_that_no_client_caused_always_pass(world: World) -> None:
    assert world.write(None, 10_000) == 10_000


def test_warnings_have_a_separate_budget(world: World) -> None:
    world.write("greedy", 10_000)
    assert world.write("greedy", 5, "exception") == 5
    assert world.write("greedy", 10_000, "warning") == 195


def test_all_clients_together_have_a_budget_in_bounded_memory(world: World) -> None:
    assert sum(world.write(f"client-{number}", 200) for number in range(5_000)) == 2_000
    assert len(world.budget._buckets) <= 2048
    assert len(world.budget._suppressed) <= 1025
    summary = world.summary()
    assert len(summary) == 11
    assert sum(summary.values()) == 5_000 * 200 - 2_000


async def test_a_summary_is_logged_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.telemetry.log_budget._PERIOD", 0.0)
    with capture_logs() as lines:
        assert world.write("greedy", 300) == 200
        await eventually(lambda: lines)
    assert [(line["client"], line["lines"]) for line in lines] == [("greedy", 100)]


def test_lines_of_threads_share_the_budget(world: World) -> None:
    written: list[int] = []

    def run(write: Callable[[], int]) -> None:
        written.append(write())

    threads = [threading.Thread(target=run, args=(lambda: world.write("greedy", 1000),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(written) == 200
    assert world.summary() == {"greedy": 3_800}
