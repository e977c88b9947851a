"""One suite for every backend. Backends whose servers are not in Python's package registry run with ``make acceptance``."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixery.settings import StorageSettings
from nixery.storage.opening import Storage, open_storage, try_out
from tests.support.object_stores import BUCKETS, STORES, ObjectStore

_DEFAULT = ("filesystem", "memory", "dictionary", "s3", "gcs")

OpenStorage = Callable[..., Storage]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked: str = metafunc.config.getoption("--buckets")
    stores = tuple(asked.split(",")) if asked else _DEFAULT
    if unknown := sorted(set(stores) - STORES.keys()):
        raise pytest.UsageError(f"--buckets: unknown {', '.join(unknown)}; there are {', '.join(STORES)}")
    if "bucket" in metafunc.fixturenames:
        buckets = [store for store in stores if store in BUCKETS]
        metafunc.parametrize("bucket", buckets, scope="session", indirect=True)
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", stores, scope="session", indirect=True)


@pytest.fixture(scope="session")
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="session")
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectStore]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as store:
        yield store


@pytest.fixture
def prefix() -> str:
    """A test's own place in a store."""
    return f"prefix/{secrets.token_hex(8)}"


@pytest.fixture
def open_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> OpenStorage:
    """Open the storage of a server as a process that has just started would."""
    (tmp_path / "temporary").mkdir()

    def open_at(server: ObjectStore, **settings: str) -> Storage:
        given = {"STORAGE_PATH": str(tmp_path), **server.settings, **settings, server.place: prefix}
        if server.driver is not None:
            try_out(server.driver(prefix), redirects=True)
            return Storage(server.driver(prefix))
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
