"""One suite for every backend. Those whose servers are not in Python's package registry run with ``make acceptance``."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixery.settings import StorageSettings
from nixery.storage.opening import Storage, open_storage
from tests.support.object_stores import STORES, ObjectStore

_DEFAULT = ("s3", "gcs")

OpenStorage = Callable[..., Storage]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked: str = metafunc.config.getoption("--buckets")
    buckets = tuple(asked.split(",")) if asked else _DEFAULT
    if "bucket" in metafunc.fixturenames:
        metafunc.parametrize("bucket", buckets, scope="session", indirect=True)
    elif "backend" in metafunc.fixturenames:
        backends = buckets if asked else ("filesystem", "memory", *buckets)
        metafunc.parametrize("backend", backends, scope="session", indirect=True)


@pytest.fixture(scope="session")
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="session")
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectStore]:
    if request.param in STORES:
        with STORES[request.param](tmp_path_factory.mktemp(request.param)) as server:
            yield server
    else:
        yield ObjectStore({"NIXERY_STORAGE_BACKEND": request.param}, 0)


@pytest.fixture
def prefix() -> str:
    """A test's own place in a bucket."""
    return f"prefix/{secrets.token_hex(8)}"


@pytest.fixture
def open_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> OpenStorage:
    """Open the storage of a server as a process that has just started would."""
    (tmp_path / "temporary").mkdir()

    def open_at(server: ObjectStore, **settings: str) -> Storage:
        given = {"S3_PREFIX": prefix, "STORAGE_PATH": str(tmp_path), **server.settings, **settings}
        given["S3_PREFIX"] = prefix
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return open_storage(
            StorageSettings.model_validate(given).storage_options, tmp_path / "temporary", given
        )

    return open_at


@pytest.fixture
def storage(backend: ObjectStore, open_at: OpenStorage) -> Storage:
    return open_at(backend)


def through(server: ObjectStore, port: int) -> ObjectStore:
    """The same server behind a proxy on another port."""
    settings = {name: value.replace(f":{server.port}", f":{port}") for name, value in server.settings.items()}
    return replace(server, settings=settings, port=port)
