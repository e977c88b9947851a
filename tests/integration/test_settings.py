from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.server import HOST, clean_environment, free_port, run_server


@pytest.fixture
def good(settings: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    return {
        **settings,
        "PORT": str(free_port()),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
    }


def problems(settings: Mapping[str, str], directory: Path) -> list[str]:
    """Return the error lines of a server that exits at start-up."""
    ended = run_server(settings, directory)
    assert ended.returncode == 2, ended
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr.splitlines()


def test_a_server_without_settings_names_all_that_are_required(tmp_path: Path) -> None:
    lines = problems({}, tmp_path)
    assert len(lines) == 4
    for variable in ("PORT", "NIXERY_PKGS_PATH", "NIXERY_STORAGE_BACKEND", "STORAGE_PATH"):
        assert sum(variable in line.replace(",", " ").split() for line in lines) == 1, lines


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "65536"),
        ("NIXERY_PKGS_PATH", "/etc"),
        ("STORAGE_PATH", ""),
        ("NIX_TIMEOUT", "0"),
    ],
)
def test_a_wrong_setting_is_one_line(good: dict[str, str], tmp_path: Path, variable: str, value: str) -> None:
    (line,) = problems({**good, variable: value}, tmp_path)
    assert variable in line


def test_wrong_settings_are_reported_at_once(good: dict[str, str], tmp_path: Path) -> None:
    wrong = {
        "PORT": "http",
        "NIXERY_PKGS_PATH": "/does/not/exist",
        "NIXERY_STORAGE_BACKEND": "floppy",
        "NIX_TIMEOUT": "soon",
    }
    lines = problems({**good, **wrong}, tmp_path)
    assert len(lines) == len(wrong)
    for variable in wrong:
        assert sum(variable in line for line in lines) == 1


@pytest.mark.parametrize("content", [None, b"[]", b'{"hello": "many"}', b"\xff"])
def test_popularity_data_that_cannot_be_read_prevents_the_start(
    good: dict[str, str], tmp_path: Path, content: bytes | None
) -> None:
    popularity = tmp_path / "popularity.json"
    if content is not None:
        popularity.write_bytes(content)
    (line,) = problems({**good, "NIX_POPULARITY_URL": str(popularity)}, tmp_path)
    assert "NIX_POPULARITY_URL" in line


def test_a_storage_directory_that_cannot_be_created_is_named(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = problems({**good, "STORAGE_PATH": str(tmp_path / "file" / "storage")}, tmp_path)
    assert str(tmp_path / "file" / "storage") in line


def test_a_port_in_use_prevents_the_start(good: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        (line,) = problems({**good, "PORT": str(listener.getsockname()[1])}, tmp_path)
    assert "listen" in line


@pytest.mark.parametrize("host", ["no.such.host.invalid", f"{'a' * 70}.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_prevents_the_start(
    good: dict[str, str], tmp_path: Path, host: str
) -> None:
    (line,) = problems({**good, "NIXERY_HOST": host}, tmp_path)
    assert "NIXERY_HOST" in line


def test_a_host_may_be_a_name(start_server: StartServer) -> None:
    assert start_server(NIXERY_HOST="localhost").client.get("/v2/").status == 200


def test_problems_of_all_start_up_checks_are_reported_at_once(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "gc-roots").touch()
    wrong = {"NIX_POPULARITY_URL": "/nowhere", "NIXERY_HOST": "no.such.host.invalid"}
    lines = problems({**good, **wrong, "STORAGE_PATH": str(tmp_path / "storage")}, tmp_path)
    assert len(lines) == 3
    for word in ("NIX_POPULARITY_URL", "gc-roots", "NIXERY_HOST"):
        assert sum(word in line for line in lines) == 1


def test_sigterm_ends_a_server_that_is_starting(good: dict[str, str]) -> None:
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen()
        silent.settimeout(20)
        url = f"http://{HOST}:{silent.getsockname()[1]}/popularity.json"
        environment = clean_environment({**good, "NIX_POPULARITY_URL": url})
        process = subprocess.Popen([sys.executable, "-m", "nixery", "serve"], env=environment)
        connection, _ = silent.accept()
        with connection:
            process.terminate()
            assert process.wait(10) == 0


def test_a_server_listens_on_loopback_by_default(start_server: StartServer) -> None:
    server = start_server()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)
    other = start_server(NIXERY_HOST="0.0.0.0", NIXERY_NIX_SANDBOX="off")  # noqa: S104 -- the subject of the test
    socket.create_connection(("127.0.0.2", other.port), timeout=5).close()


def test_a_server_without_nix_answers_with_an_error(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(PATH=str(tmp_path))
    response = server.client.manifest("hello")
    assert response.status == 500
    assert "nix-instantiate" in response.error["message"]
    assert server.client.get("/v2/").status == 200


def test_two_package_sources_are_rejected(good: dict[str, str], tmp_path: Path) -> None:
    lines = problems({**good, "NIXERY_CHANNEL": "nixos-24.05"}, tmp_path)
    assert lines == ["nixery: NIXERY_CHANNEL and NIXERY_PKGS_PATH are set; set only one package source"]
