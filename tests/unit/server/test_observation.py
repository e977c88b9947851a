"""Records of requests, and the classes of routes."""

from __future__ import annotations

from contextvars import Context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nixery.request_context import INTERNAL, Client, current_request
from nixery.server.http import BytesResponse, NotModified, Request, Response
from nixery.server.observation import OTHER, Observation, route_class
from nixery.server.registry import _RESOURCE
from nixery.telemetry.metrics import RequestCounts
from tests.fuzz.application import _Headers, _Scope

SCOPE = _Scope("GET", "/", "", _Headers([]), client="10.0.0.1:1234")


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
        observed = observation.begin(asked, SCOPE)
        observed.waited = waited
        observed.started -= seconds
        observation.end(observed, asked, response)

    with capture_logs() as lines:
        Context().run(answer)
    return [dict(line) for line in lines]


def test_an_answer_from_memory_has_no_log_line() -> None:
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
def test_a_slow_or_failed_request_has_a_log_line(
    response: Response,
    waited: bool,  # noqa: FBT001
    seconds: float,
    level: str,
) -> None:
    (line,) = logged(response, waited=waited, seconds=seconds)
    assert (line["event"], line["log_level"], line["status"]) == ("request", level, response.status)


def test_a_verbose_server_logs_every_request() -> None:
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


def test_head_counts_no_bytes() -> None:
    (line,) = logged(verbose=True, request=Request("HEAD", "/v2/"))
    assert line["bytes"] == 0


def test_long_fields_are_shortened_in_the_log() -> None:
    request = Request("GET", "/" + "x" * 60_000, {"user-agent": "y" * 60_000})
    (line,) = logged(verbose=True, request=request)
    assert (len(line["path"]), len(line["user_agent"])) == (512, 512)


def test_a_request_becomes_the_current_one() -> None:
    observation = Observation(RequestCounts())

    def begin() -> None:
        observed = observation.begin(Request("GET", "/v2/", {"x-request-id": "mine"}), SCOPE)
        assert current_request() is observed
        assert observed.id == "mine"

    Context().run(begin)


def test_an_answered_request_keeps_no_header_fields() -> None:
    observation = Observation(RequestCounts())
    headers = {"x-junk": "y" * 100_000}
    asked = Context().run(observation.begin, Request("GET", "/v2/", headers), SCOPE)
    other = Context().run(observation.begin, Request("GET", "/v2/", {}), SCOPE)
    assert asked.client == Client("10.0.0.1")
    assert observation.peers() == ["10.0.0.1:1234"] * 2
    for observed in (asked, other):
        observation.leave(observed)
        assert headers not in [getattr(observed, name) for name in ("_headers", "scope")]
    assert observation.peers() == []
    assert (asked.client, other.client) == (Client("10.0.0.1"), INTERNAL)


DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2", "version"),
        ("/v2/", "version"),
        ("/v2/_catalog", "catalog"),
        ("/v2/_catalog/", "catalog"),
        ("/v2/a/manifests/latest", "manifest_by_tag"),
        ("/v2/shell/git/manifests/latest/", "manifest_by_tag"),
        (f"/v2/a/manifests/{DIGEST}", "manifest_by_digest"),
        (f"/v2/a/blobs/{DIGEST}", "blob"),
        (f"/v2/blobs/manifests/blobs/{DIGEST}", "blob"),
        (f"/v2/a/referrers/{DIGEST}", "referrer"),
        ("/v2/a/tags/list", "tags"),
        ("/v2/a/tags/other", OTHER),
        ("/v2/manifests/latest", OTHER),
        ("/v2x/a/manifests/latest", OTHER),
        ("/metrics", "metrics"),
        ("/healthz", "health"),
        ("/api/v1/packages", "api"),
        ("/nix-cache/nix-cache-info", "nix_cache"),
        ("/", "page"),
        ("/images", "page"),
        ("/images/shell/git:latest", "page"),
        ("/builds/0123", "page"),
        ("/static/site.css", "page"),
        ("/favicon.ico", OTHER),
    ],
)
def test_the_class_of_a_route(path: str, route: str) -> None:
    assert route_class(path) == route


PART = st.sampled_from(["v2", "a", "manifests", "blobs", "referrers", "tags", "list", "latest", DIGEST, ""])


@given(st.lists(PART, max_size=7).map("/".join).map("/v2/".__add__))
def test_route_classes_agree_with_the_router(path: str) -> None:
    match = _RESOURCE.fullmatch(path)
    if match is None:
        assert route_class(path) in {"version", "catalog", OTHER}
    else:
        classes = {"manifests": "manifest_by_", "blobs": "blob", "referrers": "referrer", "tags": "tags"}
        assert route_class(path).startswith(classes[match["kind"]])


@given(st.text())
def test_any_path_has_a_known_class(path: str) -> None:
    known = "manifest_by_tag manifest_by_digest blob tags catalog referrer version metrics health page api nix_cache other"
    assert route_class(path) in known.split()
    assert route_class(f"/{path}") in known.split()
