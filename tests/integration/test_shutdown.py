from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import InBackground
from tests.support.nix import (
    children_of,
    install_fake_nix,
    is_running,
    processes_with_environment,
    started_by,
    wait_until,
)
from tests.support.packing_gate import PackingGate
from tests.support.repository import Repository
from tests.support.server import Server

# Seconds after which container runtimes kill a server that they asked to stop.
_LIMIT = 10


def stop_in_time(server: Server) -> None:
    server.terminate()
    assert server.wait(_LIMIT) == 0


def has_open(server: Server, path: Path) -> bool:
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    return any(os.path.realpath(descriptor) == str(path) for descriptor in descriptors.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    server.process.send_signal(number)
    assert server.wait(_LIMIT) == 0
    # The server did not wait for its own timeout.
    assert "cut off" not in server.log
    assert "Traceback" not in server.log


def test_a_kept_alive_connection_does_not_delay_the_end(start_server: StartServer) -> None:
    server = start_server()
    connection = server.client.connect()
    connection.request("GET", "/v2/")
    assert connection.getresponse().read() == b"{}"
    with socket.create_connection((server.client.host, server.client.port)):
        stop_in_time(server)
    connection.close()


@pytest.mark.parametrize("package", ["sleeps", "ignoresterm"])
def test_running_builds_are_ended_with_their_builders(
    start_server: StartServer, salt: str, package: str
) -> None:
    server = start_server(NIX_TIMEOUT="60")
    request = InBackground(server.client, f"/v2/{package}/manifests/latest").start()

    def builders() -> dict[int, str]:
        running = processes_with_environment(salt)
        return {
            number: command
            for number, command in children_of(server.process.pid).items()
            if number in running
        }

    # The shell, its subshell, and the commands that both wait for.
    wait_until(
        lambda: sum("sleep 40" in command for command in builders().values()) >= 2, "the builder sleeps"
    )
    processes = children_of(server.process.pid)
    assert any("nix-store" in command for command in processes.values())
    stop_in_time(server)
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended", 2)
    response = request.result()
    assert (response.status, response.errors[0]["code"]) == (429, "TOOMANYREQUESTS")
    assert "shutting down" in response.errors[0]["message"]
    assert response.errors
    assert "retry-after" in response.headers
    assert "Traceback" not in server.log


def test_a_running_evaluation_is_ended(start_server: StartServer) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, "/v2/endless/manifests/latest").start()
    wait_until(lambda: bool(started_by(server.process.pid)), "Nix runs")
    processes = children_of(server.process.pid)
    stop_in_time(server)
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended", 2)


def test_a_nix_that_ignores_sigterm_is_killed(start_server: StartServer, tmp_path: Path) -> None:
    stubborn = install_fake_nix(tmp_path / "stubborn", "trap '' TERM INT HUP; sleep 39 & wait; sleep 39")
    server = start_server(**stubborn)
    InBackground(server.client, "/v2/hello/manifests/latest").start()
    wait_until(lambda: "sleep 39" in children_of(server.process.pid).values(), "Nix runs")
    processes = children_of(server.process.pid)
    stop_in_time(server)
    # The process that reads Nix's settings at start-up ignores signals, too; the warden kills it after some
    # seconds.
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended", 7)


def test_reading_a_large_package_set_does_not_delay_the_end(
    start_server: StartServer, tmp_path: Path
) -> None:
    package_set = tmp_path / "large-set"
    package_set.mkdir()
    (package_set / "default.nix").write_text("{ ... }: { }")
    with (package_set / "large").open("wb") as file:
        file.truncate(60 << 30)  # sparse: takes no disk space, and half a minute to hash
    server = start_server(NIXERY_PKGS_PATH=str(package_set))
    request = InBackground(server.client, "/v2/hello/manifests/latest").start()
    time.sleep(0.5)  # for the request to arrive; the set is already being read
    stop_in_time(server)
    assert request.result().status == 429


def test_a_locked_repository_does_not_delay_the_end(start_server: StartServer, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit("1")
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=repository.url)
    copy = server.storage / "sources" / hashlib.sha256(repository.url.encode()).hexdigest()[:16]
    copy.mkdir(parents=True)
    with (copy / "nixery.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        request = InBackground(server.client, "/v2/hello/manifests/latest").start()
        wait_until(lambda: has_open(server, copy / "nixery.lock"), "the server waits for the lock")
        stop_in_time(server)
        assert request.result().status == 429


def read_slowly(connection: socket.socket, while_reading: Callable[[], None]) -> bytes:
    received = bytearray(connection.recv(4096))
    while_reading()
    time.sleep(5.5)  # most of the time that the server may take to stop
    while chunk := connection.recv(1 << 20):
        received += chunk
    return bytes(received)


def test_a_response_in_progress_is_finished(start_server: StartServer) -> None:
    server = start_server()
    manifest = json.loads(server.client.manifest("big").body)
    layer = max(manifest["layers"], key=lambda descriptor: int(descriptor["size"]))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(15)
    with connection:
        connection.connect((server.client.host, server.client.port))
        request = (
            f"GET /v2/big/blobs/{layer['digest']} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(request.encode())
        received = read_slowly(connection, server.terminate)
    body = received.partition(b"\r\n\r\n")[2]
    assert len(body) == layer["size"]
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == layer["digest"]
    assert server.wait() == 0


def test_the_port_is_free_at_once(start_server: StartServer) -> None:
    server = start_server()
    server.client.pull("hello")
    assert server.stop() == 0
    with pytest.raises(OSError, match="refused"):
        server.client.get("/v2/")
    assert start_server(PORT=str(server.port)).client.get("/v2/").status == 200


def test_a_running_build_ends_before_the_server_does(start_server: StartServer, tmp_path: Path) -> None:
    gate = PackingGate.install(tmp_path / "gate")
    server = start_server(NIXERY_DRAIN_TIMEOUT="60", NIXERY_MAX_BUILDS="1", **gate.environment())
    running = InBackground(server.client, "/v2/hello/manifests/latest").start()
    gate.wait()
    queued = InBackground(server.client, "/v2/greeting/manifests/latest").start()
    wait_until(
        lambda: b"nixery_builds_queued 1.0" in server.client.get("/metrics").body, "the second build waits"
    )
    server.terminate()
    wait_until(lambda: server.client.get("/readyz").status == 503, "the server says that it stops")
    refused = server.client.manifest("nano")
    assert (refused.status, refused.headers["retry-after"]) == (429, "10")
    assert server.client.get("/healthz").status == 200
    gate.open()
    assert running.result().status == 200
    waited = queued.result()
    assert (waited.status, waited.headers["retry-after"]) == (429, "10")
    assert server.wait(_LIMIT) == 0
    assert "Traceback" not in server.log


def test_a_second_signal_ends_the_wait_for_builds(start_server: StartServer, tmp_path: Path) -> None:
    gate = PackingGate.install(tmp_path / "gate")
    server = start_server(NIXERY_DRAIN_TIMEOUT="600", **gate.environment())
    running = InBackground(server.client, "/v2/hello/manifests/latest").start()
    gate.wait()
    server.terminate()
    wait_until(lambda: server.client.get("/readyz").status == 503, "the server says that it stops")
    gate.open()
    stop_in_time(server)
    assert running.result().status in {200, 429}


def test_a_build_that_takes_longer_than_the_wait_is_ended(start_server: StartServer) -> None:
    server = start_server(NIXERY_DRAIN_TIMEOUT="1", NIX_TIMEOUT="60")
    running = InBackground(server.client, "/v2/sleeps/manifests/latest").start()
    wait_until(lambda: bool(started_by(server.process.pid)), "Nix runs")
    stop_in_time(server)
    assert running.result().status == 429


def test_a_pull_survives_a_restart(start_server: StartServer, tmp_path: Path) -> None:
    """With a real client, whose library podman and buildah use as well."""
    gate = PackingGate.install(tmp_path / "gate")
    first = start_server(**gate.environment())
    image = f"docker://{first.client.host}:{first.client.port}/hello"
    with subprocess.Popen(
        ["skopeo", "inspect", "--tls-verify=false", "--raw", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        gate.wait()
        first.terminate()
        wait_until(lambda: '"stopping"' in first.log, "the server ends its builds")
        gate.open()
        assert first.wait(_LIMIT) == 0
        second = start_server(PORT=str(first.client.port))
        printed, said = client.communicate(timeout=60)
    assert client.returncode == 0, said
    assert f"sha256:{hashlib.sha256(printed.encode()).hexdigest()}" == second.client.digest("hello")
