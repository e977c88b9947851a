"""Storage that is full, read-only or missing, and a full Nix store: the errors of clients, and the recovery."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.file_systems import fill, read_only, small_file_system
from tests.support.nix import install_fake_nix, wait_until
from tests.support.private_nix import PrivateNix
from tests.support.server import Server, running_server
from tests.validator.image_validator import validate

pytestmark = pytest.mark.xdist_group("mounts")

# Bytes of the file system, and free bytes: a layer of 16 MB fills them in the middle of packing.
SIZE = 40 * 1024 * 1024
LEFT = 4 * 1024 * 1024

# Seconds for which /readyz gives the same answer.
HEALTH_TTL = 1.1


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", SIZE) as directory:
        yield directory


def readiness(server: Server) -> tuple[int, dict[str, str]]:
    time.sleep(HEALTH_TTL)
    response = server.client.get("/readyz")
    checks: dict[str, str] = response.json()["checks"]
    return response.status, checks


def temporary_files(server: Server) -> list[Path]:
    return [path for path in (server.storage / "temporary").rglob("*") if path.is_file()]


def test_a_healthy_server(start_server: StartServer) -> None:
    server = start_server()
    assert readiness(server) == (200, {"server": "ok", "storage": "ok", "nix": "ok", "source": "ok"})
    response = server.client.get("/healthz")
    assert (response.status, response.json()) == (200, {"status": "ok"})
    assert server.client.head("/readyz").status == 200
    assert server.client.request("POST", "/readyz").status == 405


def test_storage_is_full_while_layers_are_packed(start_server: StartServer, storage: Path) -> None:
    server = start_server(STORAGE_PATH=str(storage))
    image = server.client.pull("hello")
    ballast = fill(storage, LEFT)
    response = server.client.manifest("big")
    assert response.status == 507
    assert "No space left on device" in response.error["message"]
    assert str(storage) not in response.body.decode()
    assert temporary_files(server) == []
    # Not one byte is free.
    fill_up = storage / "more"
    ballast.rename(fill_up)
    fill(storage)
    status, checks = readiness(server)
    assert status == 503
    assert "No space left on device" in checks.pop("storage")
    assert set(checks.values()) == {"ok"}
    assert server.client.get("/healthz").status == 200
    # Stored images are served, also by a server with empty caches and under names that no client has
    # requested yet.
    assert validate(server.client.pull("hello")) == image
    assert server.client.manifest("hello", image.digest).status == 200
    assert server.client.manifest("big").status == 507
    assert temporary_files(server) == []
    for path in (ballast, fill_up):
        path.unlink()
    validate(server.client.pull("big"))
    assert readiness(server)[0] == 200


def test_storage_is_read_only(start_server: StartServer, storage: Path) -> None:
    server = start_server(STORAGE_PATH=str(storage))
    image = server.client.pull("hello")
    with read_only(storage):
        assert validate(server.client.pull("hello")) == image
        response = server.client.manifest("greeting")
        assert response.status == 500
        assert "Read-only file system" in response.error["message"]
        status, checks = readiness(server)
        assert status == 503
        assert "Read-only file system" in checks["storage"]
    validate(server.client.pull("greeting"))
    assert readiness(server)[0] == 200


def test_storage_vanishes(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello")
    shutil.rmtree(server.storage)
    time.sleep(HEALTH_TTL)
    assert validate(server.client.pull("hello")) == image
    assert readiness(server)[0] == 200
    # The server holds its directories again: another server that starts does not remove them.
    wait_until(lambda: len(list((server.storage / "temporary").iterdir())) == 1, "made again")
    time.sleep(HEALTH_TTL)
    other = start_server()
    assert len(list((server.storage / "temporary").iterdir())) == 2
    assert other.client.pull("hello") == image


def test_storage_vanishes_and_cannot_be_created(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(STORAGE_PATH=str(tmp_path / "parent" / "storage"))
    image = server.client.pull("hello")
    shutil.rmtree(tmp_path / "parent")
    (tmp_path / "parent").touch()
    time.sleep(HEALTH_TTL)
    assert server.client.manifest("greeting").status == 500
    assert readiness(server)[0] == 503
    assert server.client.get("/healthz").status == 200
    (tmp_path / "parent").unlink()
    assert validate(server.client.pull("hello")) == image
    assert readiness(server)[0] == 200


NIX_STORE_FULL = "error: writing to file '/nix/store/x': No space left on device"


@pytest.mark.parametrize("command", ["nix-instantiate", "nix-store"])
def test_nix_store_is_full(start_server: StartServer, tmp_path: Path, command: str) -> None:
    """Nix behind a script that fails with Nix's message while a file exists."""
    full = tmp_path / "full"
    program = shutil.which(command)
    environment = install_fake_nix(
        tmp_path / "fake",
        f'test -e {full} && {{ echo "{NIX_STORE_FULL}" >&2; exit 1; }}; exec {program} "$@"',
    )
    for other in (tmp_path / "fake").iterdir():
        if other.name != command:
            other.unlink()
    server = start_server(**environment)
    full.touch()
    response = server.client.manifest("hello")
    assert response.status == 507
    assert "Nix store is full" in response.error["message"]
    full.unlink()
    validate(server.client.pull("hello"))


# Bytes of the file system with Nix's store and database, and free bytes for a package of 16 MB.
STORE_SIZE = 96 * 1024 * 1024
# With less, the evaluation would fail: adding derivations to the database, or even opening it.
STORE_LEFT = (8 * 1024 * 1024, 64 * 1024, 0)


@pytest.fixture
def small_nix(tmp_path: Path) -> Iterator[PrivateNix]:
    with small_file_system(tmp_path / "nix-disk", STORE_SIZE) as directory:
        yield PrivateNix.create(directory)


@pytest.mark.parametrize("left", STORE_LEFT)
def test_a_real_nix_store_is_full(
    tmp_path: Path, settings: Mapping[str, str], small_nix: PrivateNix, left: int
) -> None:
    """Nix writes only to a small file system."""
    chosen = {**settings, **small_nix.environment()}
    with running_server(tmp_path / "server", chosen, launcher=small_nix.launcher) as server:
        image = validate(server.client.pull("hello"))
        assert readiness(server)[0] == 200
        ballast = fill(small_nix.directory, left)
        response = server.client.manifest("big")
        assert response.status == 507, response
        assert "Nix store is full" in response.error["message"]
        status, checks = readiness(server)
        assert status == 503
        assert "Nix store is full" in checks.pop("nix")
        assert set(checks.values()) == {"ok"}
        assert validate(server.client.pull("hello")) == image
        assert server.client.get("/healthz").status == 200
        ballast.unlink()
        validate(server.client.pull("big"))
        assert readiness(server)[0] == 200
