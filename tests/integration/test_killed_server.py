"""Of a server that is killed, nothing goes on; what it has left is swept by the next one."""

from __future__ import annotations

import signal
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
from tests.support.server import Server
from tests.validator.image_validator import validate

# Seconds: what Nix is given to end its builders, and some more.
_LIMIT = 8


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.wait()


@pytest.mark.parametrize("package", ["sleeps", "ignoresterm"])
def test_builders(start_server: StartServer, salt: str, package: str) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, f"/v2/{package}/manifests/latest").start()
    wait_until(
        lambda: sum("sleep 40" in command for command in processes_with_environment(salt).values()) >= 2,
        "the builder sleeps",
    )
    processes = children_of(server.process.pid)
    kill(server)
    wait_until(lambda: not processes_with_environment(salt), "no builder is left", _LIMIT)
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", _LIMIT)


def test_evaluations(start_server: StartServer) -> None:
    server = start_server(NIX_TIMEOUT="60")
    InBackground(server.client, "/v2/endless/manifests/latest").start()

    def nix() -> dict[int, str]:
        found = children_of(server.process.pid)
        return {number: command for number, command in found.items() if "nix-instantiate" in command}

    wait_until(lambda: bool(nix()), "Nix runs")
    processes = children_of(server.process.pid)
    kill(server)
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", _LIMIT)


def test_what_does_not_end_when_it_is_asked_to(start_server: StartServer, tmp_path: Path) -> None:
    stubborn = install_fake_nix(tmp_path / "stubborn", "trap '' TERM INT HUP; sleep 39 & wait; sleep 39")
    server = start_server(**stubborn)
    InBackground(server.client, "/v2/hello/manifests/latest").start()
    wait_until(lambda: "sleep 39" in children_of(server.process.pid).values(), "Nix runs")
    processes = children_of(server.process.pid)
    kill(server)
    wait_until(lambda: not any(map(is_running, processes)), f"of {processes} nothing is left", _LIMIT)


def test_others_are_left_alone(start_server: StartServer) -> None:
    server, other = start_server(), start_server()
    request = InBackground(other.client, "/v2/slow/manifests/latest").start()
    wait_until(lambda: len(children_of(other.process.pid)) > 1, "the other one builds")
    kill(server)
    assert request.result().status == 200


def test_one_that_ends_by_itself_leaves_no_warden(start_server: StartServer) -> None:
    server = start_server()
    # Beside it, the server may be asking git about the package set.
    found = children_of(server.process.pid).items()
    (warden,) = [number for number, command in found if "warden.py" in command]
    assert server.stop() == 0
    assert not is_running(warden)


def test_locks_and_unfinished_files_are_swept(start_server: StartServer) -> None:
    server = start_server()
    (server.storage / "locks" / "left-behind").touch()
    InBackground(server.client, "/v2/big/manifests/latest").start()
    temporary = server.storage / "temporary"
    wait_until(lambda: any(path.is_file() for path in temporary.rglob("*")), "a layer is packed")
    kill(server)
    again = start_server()
    left = [*(server.storage / "locks").iterdir(), *(path for path in temporary.rglob("*") if path.is_file())]
    assert left == []
    validate(again.client.pull("big"))
