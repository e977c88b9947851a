"""The application as the web server calls it; what is behind it is made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextvars import Context

import pytest

from nixery.caching import SingleFlight
from nixery.request_context import current_request
from nixery.server import app as rsgi
from nixery.server.app import Application
from nixery.server.health import Health
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.observation import Observation
from nixery.telemetry.metrics import RequestCounts
from tests.fuzz.application import _Headers, _Protocol, _Scope


class Slow:
    """Answers when a piece of work is done that all wait for together."""

    def __init__(self) -> None:
        self.flight: SingleFlight[str, str] = SingleFlight()
        self.done = asyncio.Event()
        self.bodies: list[bytes | None] = []

    async def answer(self, request: Request) -> Response:
        self.bodies.append(request.body)
        if request.path == "/slow":
            await self.flight.run("work", self._work)
        return BytesResponse(200, b"done")

    async def _work(self) -> str:
        await self.done.wait()
        return "done"


class _Body(_Protocol):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def application(slow: Slow) -> Application:
    others = {"/slow": slow.answer, "/api/v1/builds": slow.answer}
    return Application(None, Observation(RequestCounts()), others)


def ask(
    one: Application, peer: str, path: str = "/slow", method: str = "GET", body: Iterable[bytes] = ()
) -> tuple[asyncio.Task[None], _Protocol]:
    scope = _Scope(method, path, "", _Headers([("host", "a")]), client=peer)
    protocol = _Body(body)
    task = asyncio.get_running_loop().create_task(one.__rsgi__(scope, protocol), context=Context())
    return task, protocol


async def test_a_request_whose_client_has_gone_waits_no_longer_and_others_do() -> None:
    slow = Slow()
    one = application(slow)
    first, second = ask(one, "192.0.2.1:1"), ask(one, "192.0.2.2:2")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sorted(one.peers()) == ["192.0.2.1:1", "192.0.2.2:2"]
    # It was the first one that began the work.
    one.abandon({"192.0.2.1:1"})
    await asyncio.wait_for(first[0], 5)
    assert [answer.status for answer in first[1].responses] == [499]
    assert one.peers() == ["192.0.2.2:2"]
    assert not second[0].done()
    slow.done.set()
    await asyncio.wait_for(second[0], 5)
    assert [answer.status for answer in second[1].responses] == [200]
    assert one.peers() == []


async def test_work_inside_of_work_does_not_end_with_the_request_that_began_it() -> None:
    outer: SingleFlight[str, str] = SingleFlight()
    slow = Slow()

    async def inner() -> str:
        return await slow.flight.run("inner", slow._work)

    async def answer(request: Request) -> Response:
        await outer.run("outer", inner)
        return await slow.answer(Request(request.method, "/"))

    one = Application(None, Observation(RequestCounts()), {"/slow": answer})
    first, second = ask(one, "192.0.2.1:1"), ask(one, "192.0.2.2:2")
    for _ in range(10):
        await asyncio.sleep(0)
    one.abandon({"192.0.2.1:1"})
    await asyncio.wait_for(first[0], 5)
    slow.done.set()
    await asyncio.wait_for(second[0], 5)
    assert [answer.status for answer in second[1].responses] == [200]


async def test_a_body_in_many_pieces_is_not_taken() -> None:
    slow = Slow()
    one = application(slow)
    for pieces, taken in (([b"x"] * 64, True), ([b"x"] * 65, False), ([b"x" * 20_000], False)):
        task, _ = ask(one, "192.0.2.1:1", "/api/v1/builds", "POST", pieces)
        await task
        assert (slow.bodies.pop() is not None) == taken


async def test_checks_are_not_made_on_behalf_of_whoever_asks() -> None:

    found = []

    async def check() -> None:
        found.append(current_request())

    health = Health({"source": check})
    task, protocol = ask(
        Application(None, Observation(RequestCounts()), {"/readyz": health.answer}), "192.0.2.1:1", "/readyz"
    )
    await task
    assert [answer.status for answer in protocol.responses] == [200]
    assert found == [None]


async def test_whatever_is_wrong_with_this_program_is_answered_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("/srv/secret")

    monkeypatch.setattr(rsgi, "refusal", broken)
    counts = RequestCounts()
    one = Application(None, Observation(counts), {})
    task, protocol = ask(one, "192.0.2.1:1", "/v2/" + "a" * 5000)
    await task
    (answer,) = protocol.responses
    assert answer.status == 500
    assert b"/srv/secret" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert one.peers() == []
    requests = next(metric for metric in counts.collect() if metric.name == "nixery_http_requests")
    assert [sample.labels["status"] for sample in requests.samples] == ["500"]
    assert "request failed" in capsys.readouterr().out
