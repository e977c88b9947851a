"""Which requests have a line in the log, and what is in it."""

from __future__ import annotations

from contextvars import Context
from typing import Any

import pytest
from structlog.testing import capture_logs

from nixery.request_context import INTERNAL, Client, current_request
from nixery.server.http import BytesResponse, NotModified, Request, Response
from nixery.server.observation import Observation
from nixery.telemetry.metrics import RequestCounts


class Peer:
    client = "10.0.0.1:1234"


OK = BytesResponse(200, b"12345")


def logged(
    response: Response = OK,
    *,
    verbose: bool = False,
    waited: bool = False,
    seconds: float = 0,
    request: Request | None = None,
) -> list[dict[str, Any]]:
    observation = Observation(RequestCounts(), verbose=verbose)
    asked = request or Request("GET", "/v2/")

    def answer() -> None:
        observed = observation.begin(asked, Peer())
        observed.waited = waited
        observed.started -= seconds
        observation.end(observed, asked, response)

    with capture_logs() as lines:
        Context().run(answer)
    return [dict(line) for line in lines]


def test_what_was_in_memory_has_no_line() -> None:
    assert logged() == []
    assert logged(NotModified()) == []


@pytest.mark.parametrize(
    ("response", "waited", "seconds", "level"),
    [
        (OK, True, 0, "info"),
        (OK, False, 2, "info"),
        (BytesResponse(404, b""), False, 0, "info"),
        (BytesResponse(500, b""), False, 0, "warning"),
    ],
)
def test_what_has_a_line(response: Response, waited: bool, seconds: float, level: str) -> None:  # noqa: FBT001
    (line,) = logged(response, waited=waited, seconds=seconds)
    assert (line["event"], line["log_level"], line["status"]) == ("request", level, response.status)


def test_every_request_has_one_where_it_is_wanted() -> None:
    headers = {"user-agent": "docker", "x-forwarded-for": "192.0.2.1"}
    (line,) = logged(verbose=True, request=Request("GET", "/v2/", headers))
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "debug",
        "method": "GET",
        "path": "/v2/",
        "status": 200,
        "bytes": 5,
        "client": "10.0.0.1:1234",
        "user_agent": "docker",
        "forwarded_for": "192.0.2.1",
    }


def test_no_bytes_are_served_to_a_head() -> None:
    (line,) = logged(verbose=True, request=Request("HEAD", "/v2/"))
    assert line["bytes"] == 0


def test_what_clients_send_is_shortened() -> None:
    request = Request("GET", "/" + "x" * 60_000, {"user-agent": "y" * 60_000})
    (line,) = logged(verbose=True, request=request)
    assert (len(line["path"]), len(line["user_agent"])) == (512, 512)


def test_a_request_is_the_current_one() -> None:
    observation = Observation(RequestCounts())

    def begin() -> None:
        observed = observation.begin(Request("GET", "/v2/", {"x-request-id": "mine"}), Peer())
        assert current_request() is observed
        assert observed.id == "mine"

    Context().run(begin)


def test_little_is_kept_of_a_request_that_was_answered() -> None:
    observation = Observation(RequestCounts())
    headers = {"x-junk": "y" * 100_000}
    asked = Context().run(observation.begin, Request("GET", "/v2/", headers), Peer())
    other = Context().run(observation.begin, Request("GET", "/v2/", {}), Peer())
    assert asked.client == Client("10.0.0.1")
    assert observation.peers() == ["10.0.0.1:1234"] * 2
    for observed in (asked, other):
        observation.leave(observed)
        assert headers not in [getattr(observed, name) for name in ("_headers", "peer")]
    assert observation.peers() == []
    assert (asked.client, other.client) == (Client("10.0.0.1"), INTERNAL)
