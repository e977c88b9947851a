"""A killed server leaves no process behind, and the next one removes its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import InBackground
from tests.support.nix import (
    children_of,
    install_fake_nix,
    is_running,
    processes_with_environment,
    wait_until,
)
from tests.support.packing_gate import PackingGate
from tests.validator.image_validator import validate


@pytest.mark.parametrize("package", ["sleeps", "ignoresterm"])
def test_builders_end_with_the_server(start_server: StartServer, salt: str, package: str) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, f"/v2/{package}/manifests/latest").start()
    wait_until(
        lambda: sum("sleep 40" in command for command in processes_with_environment(salt).values()) >= 2,
        "the builder sleeps",
    )
    processes = children_of(server.process.pid)
    server.kill()
    wait_until(lambda: not processes_with_environment(salt), "no builder is left")
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended")


def test_evaluations_end_with_the_server(start_server: StartServer) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, "/v2/endless/manifests/latest").start()

    def nix() -> dict[int, str]:
        found = children_of(server.process.pid)
        return {number: command for number, command in found.items() if "nix-instantiate" in command}

    wait_until(lambda: bool(nix()), "Nix runs")
    processes = children_of(server.process.pid)
    server.kill()
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended")


def test_processes_that_ignore_signals_are_killed(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(**install_fake_nix(tmp_path / "fake", "exit 1"))
    # Only now: a server asks Nix for its settings before it listens.
    install_fake_nix(tmp_path / "fake", "trap '' TERM INT HUP; sleep 39 & wait; sleep 39")
    InBackground(server.client, "/v2/hello/manifests/latest").start()
    wait_until(lambda: "sleep 39" in children_of(server.process.pid).values(), "Nix runs")
    processes = children_of(server.process.pid)
    server.kill()
    wait_until(lambda: not any(map(is_running, processes)), f"all of {processes} have ended")


def test_processes_of_another_server_survive(start_server: StartServer) -> None:
    server, other = start_server(), start_server()
    request = InBackground(other.client, "/v2/slow/manifests/latest").start()
    wait_until(lambda: len(children_of(other.process.pid)) > 1, "the other one builds")
    server.kill()
    assert request.result().status == 200


def test_a_stopped_server_leaves_no_warden(start_server: StartServer) -> None:
    server = start_server()
    # The server may also be running git for the package set.
    found = children_of(server.process.pid).items()
    (warden,) = [number for number, command in found if "warden.py" in command]
    assert server.stop() == 0
    assert not is_running(warden)


def test_locks_and_unfinished_files_are_removed(start_server: StartServer, tmp_path: Path) -> None:
    gate = PackingGate.install(tmp_path / "gate")
    server = start_server(**gate.environment())
    (server.storage / "locks" / "left-behind").touch()
    InBackground(server.client, "/v2/big/manifests/latest").start()
    gate.wait()
    server.kill()
    temporary = server.storage / "temporary"
    assert any(path.is_file() for path in temporary.rglob("*"))
    again = start_server()
    left = [*(server.storage / "locks").iterdir(), *(path for path in temporary.rglob("*") if path.is_file())]
    assert left == []
    validate(again.client.pull("big"))
