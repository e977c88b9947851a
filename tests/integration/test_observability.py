"""Metrics, logs and request ids of a server with real Nix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import StartServer
from tests.support.client import InBackground, RegistryClient
from tests.support.nix import NixSpy, wait_until
from tests.support.server import Server, running_server


def metrics(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples, by name and labels."""
    response = server.client.get("/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(response.body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float | None:
    return metrics(server).get((name, frozenset(labels.items())))


def lines(server: Server, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in server.log.splitlines()]
    return [line for line in found if line["event"] == event]


def test_metrics_of_a_pull_and_of_its_repetition(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello")
    served = sum(len(layer.blob) for layer in image.layers)
    layers = len(image.layers)
    assert value(server, "nixery_builds_total", outcome="built") == 1
    assert value(server, "nixery_builds_running") == 0
    assert value(server, "nixery_cache_misses_total", cache="layer") == layers
    assert value(server, "nixery_cache_misses_total", cache="image") == 1
    assert value(server, "nixery_cache_misses_total", cache="pin") == 1
    assert value(server, "nixery_cache_hits_total", cache="image") == 0
    assert value(server, "nixery_packed_bytes_total") == served
    assert value(server, "nixery_served_bytes_total", route="blob") == served + len(image.config)
    for stage in ("evaluate", "realise", "group", "pack", "store"):
        assert value(server, "nixery_build_stage_duration_seconds_count", stage=stage) == 1
    server.client.pull("hello")
    assert value(server, "nixery_cache_hits_total", cache="image") == 1
    assert value(server, "nixery_cache_hits_total", cache="pin") == 1
    assert value(server, "nixery_cache_hits_total", cache="blob") == layers + 1
    labels = {"method": "GET", "route": "manifest_by_tag", "status": "200"}
    assert value(server, "nixery_http_requests_total", **labels) == 2


def test_no_label_has_a_name_of_a_client(start_server: StartServer) -> None:
    server = start_server()
    digest = server.client.digest("hello")
    assert server.client.manifest("nosuchpackage").status == 404
    server.client.request("PROPFIND", f"/v2/hello/manifests/{digest}")
    server.client.get("/nosuchpage/hello")
    text = server.client.get("/metrics").body.decode()
    assert not re.search(r"hello|nosuch|PROPFIND|sha256|127\.0\.0\.1", text)


def test_failures_are_counted_by_outcome(start_server: StartServer) -> None:
    server = start_server()
    assert server.client.manifest("fails").status == 422
    assert server.client.manifest("nosuchpackage").status == 404
    assert value(server, "nixery_builds_total", outcome="failed") == 1
    assert value(server, "nixery_builds_total", outcome="unavailable") == 1
    assert value(server, "nixery_builds_running") == 0


def test_a_running_build_is_counted_until_it_ends(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIX_TIMEOUT="5", **spy.environment())
    with spy.holding("--realise"):
        waiting = InBackground(server.client, "/v2/sleeps/manifests/latest").start()
        wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build begins")
        assert (value(server, "nixery_builds_running"), value(server, "nixery_nix_processes")) == (1, 1)
        assert waiting.result().status == 422
    assert value(server, "nixery_builds_total", outcome="timed_out") == 1
    assert value(server, "nixery_nix_processes") == 0


def test_storage_errors_are_counted(start_server: StartServer) -> None:
    server = start_server()
    # A file in place of a directory: not even root can write there.
    (server.storage / "records" / "images").parent.mkdir(exist_ok=True)
    (server.storage / "records" / "images").write_text("")
    assert server.client.manifest("hello").status == 500
    total = sum(n for (name, _), n in metrics(server).items() if name == "nixery_storage_errors_total")
    assert total > 0
    assert value(server, "nixery_builds_total", outcome="storage_error") == 1


def test_metrics_refuse_post(client: RegistryClient) -> None:
    assert client.request("POST", "/metrics").status == 405
    head = client.head("/metrics")
    assert (head.status, head.body) == (200, b"")


def test_a_request_id_runs_through_a_build(start_server: StartServer) -> None:
    server = start_server(NIXERY_LOG_LEVEL="debug", NIXERY_TRUSTED_PROXIES="127.0.0.1")
    response = server.client.get("/v2/hello/manifests/latest", {"X-Request-Id": "pull-1"})
    assert response.headers["x-request-id"] == "pull-1"
    for event in ("pinned", "building", "realised", "packed", "built", "request"):
        logged = lines(server, event)
        others = [line for line in logged if line["request_id"] != "pull-1"]
        assert len(logged) > len(others), event
        assert all(line["path"] == "/v2/" for line in others), (
            "requests of the test until the server was ready"
        )


def test_every_response_has_a_request_id(start_server: StartServer) -> None:
    client = start_server(NIXERY_TRUSTED_PROXIES="127.0.0.1").client
    given = {"X-Request-Id": "not well-formed"}
    paths = ("/v2/", "/v2/hello/blobs/x", "/nothing", "/metrics", "/v2/hello/manifests/latest")
    found = [client.get(path, given).headers["x-request-id"] for path in paths]
    assert len(set(found)) == len(paths)
    assert "not well-formed" not in found


def test_joining_a_build_is_logged_with_both_requests(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_TRUSTED_PROXIES="127.0.0.1", **spy.environment())
    path = "/v2/slow/manifests/latest"

    def ask(identity: str) -> InBackground:
        return InBackground(server.client, path, headers={"X-Request-Id": identity}).start()

    with spy.holding("--realise"):
        first = ask("first")
        wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build begins")
        second = ask("second")
        wait_until(
            lambda: value(server, "nixery_builds_joined_total") == 1, "the second request joins the build"
        )
    assert {first.result().status, second.result().status} == {200}
    (joined,) = lines(server, "joined")
    assert (joined["request_id"], joined["build_request_id"]) == ("second", "first")
    assert {line["request_id"] for line in lines(server, "built")} == {"first"}
    assert value(server, "nixery_builds_joined_total") == 1
    assert value(server, "nixery_builds_total", outcome="built") == 1


def test_a_pull_logs_few_lines(start_server: StartServer) -> None:
    server = start_server()
    before = len(server.log.splitlines())
    server.client.pull("hello")
    after_one = server.log.splitlines()
    events = [json.loads(line)["event"] for line in after_one[before:]]
    assert events == ["pinned", "building", "built", "request"]
    server.client.pull("hello")
    assert server.log.splitlines() == after_one
    assert server.client.manifest("nosuchpackage").status == 404
    (_, line) = lines(server, "request")
    assert (line["status"], line["level"], line["path"]) == (
        404,
        "info",
        "/v2/nosuchpackage/manifests/latest",
    )


def test_log_levels_and_formats(start_server: StartServer) -> None:
    verbose = start_server(NIXERY_LOG_LEVEL="debug", NIXERY_LOG_FORMAT="json")
    verbose.client.get("/v2/")
    assert [line["path"] for line in lines(verbose, "request")][-1] == "/v2/"
    quiet = start_server(NIXERY_LOG_LEVEL="warning")
    quiet.client.manifest("nosuchpackage")
    # Warnings of start-up about this machine.
    assert {json.loads(line)["event"] for line in quiet.log.splitlines()} <= {"builders", "unsafe version"}
    console = start_server(NIXERY_LOG_FORMAT="console")
    console.client.get("/v2/%1b%5b31m%0aforged/manifests/latest", {"User-Agent": "a\tb"})
    (line,) = [line for line in console.log.splitlines() if "forged" in line]
    assert "request" in line
    assert "status=400" in line
    assert "\x1b" not in console.log


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [("NIXERY_LOG_LEVEL", "loud"), ("NIXERY_LOG_FORMAT", ""), ("OTEL_TRACES_EXPORTER", "jaeger")],
)
def test_a_wrong_setting_is_refused(start_server: StartServer, variable: str, wrong: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)ended with 2.*{variable} is wrong"):
        start_server(**{variable: wrong})


def test_a_log_that_cannot_be_written_fails_no_request(tmp_path: Path, settings: Mapping[str, str]) -> None:
    """The disk of the log is full. A pipe without a reader fails in the same call."""
    full = ("/bin/sh", "-c", 'exec "$@" > /dev/full 2>&1', "sh")
    with running_server(tmp_path, settings, launcher=full) as server:
        assert server.client.pull("hello").layers
        assert server.client.get("/v2/nosuchpackage/manifests/latest").status == 404
        assert server.stop() == 0
