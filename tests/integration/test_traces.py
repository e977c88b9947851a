"""Traces of a server, as a collector receives them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.trace_receiver import TraceReceiver, attributes, trace_receiver

STAGES = {"evaluate", "realise", "group", "pack", "store"}

# trace.proto: SpanKind and Status.
SERVER, ERROR = 2, 2


@pytest.fixture
def receiver() -> Iterator[TraceReceiver]:
    with trace_receiver() as receiver:
        yield receiver


def variables(receiver: TraceReceiver) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "NIXERY_TRUSTED_PROXIES": "127.0.0.1",
    }


def test_a_trace_has_the_request_its_build_and_the_stages(
    start_server: StartServer, receiver: TraceReceiver
) -> None:
    server = start_server(**variables(receiver))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "pull-1", "User-Agent": "docker"}
    assert server.client.get("/v2/hello/manifests/latest", headers).status == 200
    request = receiver.wait_for("GET manifest_by_tag")
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (trace, parent, SERVER)
    said = attributes(request)
    assert (said["http.response.status_code"], said["url.path"]) == (200, "/v2/hello/manifests/latest")
    assert (said["nixery.request_id"], said["user_agent.original"]) == ("pull-1", "docker")
    build = receiver.wait_for("build")
    assert (build.trace_id, build.parent_span_id) == (request.trace_id, request.span_id)
    assert attributes(build)["nixery.image"] == "hello"
    stages = [span for span in receiver.spans if span.parent_span_id == build.span_id]
    assert {span.name for span in stages} == STAGES
    in_order = sorted(stages, key=lambda span: span.start_time_unix_nano)
    for earlier, later in pairwise(in_order):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano
    names = {a.key: a.value.string_value for a in receiver.received[0].resource.attributes}
    assert names["service.name"] == "nixery"


def test_the_service_has_the_name_that_the_environment_gives(
    start_server: StartServer, receiver: TraceReceiver
) -> None:
    server = start_server(**variables(receiver), OTEL_SERVICE_NAME="registry")
    server.client.get("/v2/")
    receiver.wait_for("GET version")
    names = {a.key: a.value.string_value for a in receiver.received[0].resource.attributes}
    assert names["service.name"] == "registry"


def test_the_span_of_a_failed_build_has_the_error(start_server: StartServer, receiver: TraceReceiver) -> None:
    server = start_server(**variables(receiver))
    assert server.client.manifest("fails").status == 422
    build = receiver.wait_for("build")
    assert build.status.code == ERROR
    assert "only line of the log" in build.status.message
    stages = {span.name for span in receiver.spans if span.parent_span_id == build.span_id}
    assert stages == {"evaluate", "realise"}


def test_pending_spans_are_sent_on_shutdown(start_server: StartServer, receiver: TraceReceiver) -> None:
    server = start_server(**variables(receiver) | {"OTEL_BSP_SCHEDULE_DELAY": "600000"})
    server.client.get("/v2/hello/tags/list")
    assert not receiver.spans
    assert server.stop() == 0
    receiver.wait_for("GET tags")


def test_a_silent_receiver_delays_neither_requests_nor_shutdown(start_server: StartServer) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = start_server(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="10")
        assert server.client.manifest("hello").status == 200
        silent.settimeout(30)
        attempt, _ = silent.accept()
        with attempt:
            assert server.stop() == 0
        assert "Traceback" not in server.log


def test_an_endless_answer_of_a_receiver_takes_bounded_memory(start_server: StartServer) -> None:
    most = 64 * 1024 * 1024
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        endpoint = f"http://127.0.0.1:{receiver.getsockname()[1]}"
        server = start_server(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="10")
        receiver.settimeout(30)
        connection, _ = receiver.accept()
        with connection:
            connection.settimeout(30)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            sent = 0
            with suppress(ConnectionError):
                while sent < most:
                    sent += connection.send(b"x" * 65536)
    # Sockets buffer some of it; the server closes the connection long before the end.
    assert sent < most
    assert server.stop() == 0


@pytest.mark.parametrize("off", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_tracing_is_off_where_the_environment_says_so(
    start_server: StartServer, receiver: TraceReceiver, off: dict[str, str]
) -> None:
    server = start_server(**variables(receiver), **off)
    server.client.get("/v2/")
    assert server.stop() == 0
    assert not receiver.spans


def test_a_missing_extra_is_a_warning(
    start_server: StartServer, receiver: TraceReceiver, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "opentelemetry").mkdir(parents=True)
    (hidden / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError(name='opentelemetry')")
    server = start_server(**variables(receiver), PYTHONPATH=str(hidden))
    (line,) = [json.loads(line) for line in server.log.splitlines() if "nixery[otel]" in line]
    assert line["level"] == "warning"
    assert server.client.manifest("hello").status == 200
    assert not receiver.spans
