from __future__ import annotations

import fcntl
import hashlib
import json
import signal
import socket
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
from tests.support.repository import Repository
from tests.support.server import Server

# Seconds a server has, by contract.
_LIMIT = 10


def seconds_to_stop(server: Server) -> float:
    begin = time.monotonic()
    assert server.stop() == 0
    return time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    begin = time.monotonic()
    server.process.send_signal(number)
    assert server.wait() == 0
    assert time.monotonic() - begin < 5
    assert "Traceback" not in server.log


def test_connection_that_is_kept_alive_holds_nothing_up(start_server: StartServer) -> None:
    server = start_server()
    connection = server.client.connect()
    connection.request("GET", "/v2/")
    assert connection.getresponse().read() == b"{}"
    with socket.create_connection((server.client.host, server.client.port)):
        assert seconds_to_stop(server) < _LIMIT
    connection.close()


@pytest.mark.parametrize("package", ["sleeps", "ignoresterm"])
def test_running_builds_are_ended(start_server: StartServer, salt: str, package: str) -> None:
    server = start_server(NIX_TIMEOUT="60")
    request = InBackground(server.client, f"/v2/{package}/manifests/latest").start()

    def builders() -> dict[int, str]:
        running = processes_with_environment(salt)
        return {
            number: command
            for number, command in children_of(server.process.pid).items()
            if number in running
        }

    # The shell, its subshell, and what both of them wait for.
    wait_until(
        lambda: sum("sleep 40" in command for command in builders().values()) >= 2, "the builder sleeps"
    )
    processes = children_of(server.process.pid)
    assert any("nix-store" in command for command in processes.values())
    assert seconds_to_stop(server) < _LIMIT
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", 2)
    response = request.result()
    assert response.status == 503
    assert response.errors
    assert "retry-after" in response.headers
    assert "Traceback" not in server.log


def test_running_evaluation_is_ended(start_server: StartServer) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, "/v2/endless/manifests/latest").start()
    wait_until(lambda: bool(started_by(server.process.pid)), "Nix runs")
    processes = children_of(server.process.pid)
    assert seconds_to_stop(server) < _LIMIT
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", 2)


def test_nix_that_does_not_end_when_it_is_asked_to(start_server: StartServer, tmp_path: Path) -> None:
    stubborn = install_fake_nix(tmp_path / "stubborn", "trap '' TERM INT HUP; sleep 39 & wait; sleep 39")
    server = start_server(**stubborn)
    InBackground(server.client, "/v2/hello/manifests/latest").start()
    wait_until(lambda: "sleep 39" in children_of(server.process.pid).values(), "Nix runs")
    processes = children_of(server.process.pid)
    assert seconds_to_stop(server) < _LIMIT
    # What was asked for Nix's settings at the start is as stubborn: the warden ends it, after some seconds.
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", 7)


def test_package_set_that_takes_long_to_read(start_server: StartServer, tmp_path: Path) -> None:
    package_set = tmp_path / "large-set"
    package_set.mkdir()
    (package_set / "default.nix").write_text("{ ... }: { }")
    with (package_set / "large").open("wb") as file:
        file.truncate(60 << 30)  # takes no room on the disk, and half a minute to digest
    server = start_server(NIXERY_PKGS_PATH=str(package_set))
    request = InBackground(server.client, "/v2/hello/manifests/latest").start()
    time.sleep(0.5)
    assert request.is_running
    assert seconds_to_stop(server) < _LIMIT
    assert request.result().status == 503


def test_repository_that_another_process_has_locked(start_server: StartServer, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit("1")
    server = start_server(NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=repository.url)
    copy = server.storage / "sources" / hashlib.sha256(repository.url.encode()).hexdigest()[:16]
    copy.mkdir(parents=True)
    with (copy / "nixery.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        request = InBackground(server.client, "/v2/hello/manifests/latest").start()
        time.sleep(0.5)
        assert request.is_running
        assert seconds_to_stop(server) < _LIMIT
        assert request.result().status == 503


def read_slowly(connection: socket.socket, while_reading: Callable[[], None]) -> bytes:
    received = bytearray(connection.recv(4096))
    while_reading()
    time.sleep(5.5)  # most of the time that stopping may take
    while chunk := connection.recv(1 << 20):
        received += chunk
    return bytes(received)


def test_response_that_is_being_sent_is_finished(start_server: StartServer) -> None:
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


def test_port_is_free_at_once(start_server: StartServer) -> None:
    server = start_server()
    server.client.pull("hello")
    assert server.stop() == 0
    with pytest.raises(OSError, match="refused"):
        server.client.get("/v2/")
    assert start_server(PORT=str(server.port)).client.get("/v2/").status == 200
