"""A server of all of Debian, and every installed client with its own storage."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.acceptance.report import ACCESS_TESTS, TESTS, ClientReport, Report, Result, message_of, release
from tests.acceptance.clients.buildah import Buildah, running_buildah
from tests.acceptance.clients.client import Client
from tests.acceptance.clients.containerd import Containerd, running_containerd
from tests.acceptance.clients.crane import Crane, running_crane
from tests.acceptance.clients.docker import Docker, running_docker
from tests.acceptance.clients.podman import Podman, running_podman
from tests.acceptance.clients.skopeo import Skopeo, running_skopeo
from tests.acceptance.registry_with_access import Registry, running_registry
from tests.support.file_systems import short_lived_directory
from tests.support.nix import nix_environment
from tests.support.object_stores import STORES, ObjectStore
from tests.support.server import HOST, Server, running_server

PACKAGE_SET = Path(__file__).parent / "packageset"

# The modules whose tests have a row in the report.
_CLIENTS = ("test_clients.py::", "test_access.py::")

# The bucket server that a module needs. Official Node comes from npm, as does the server for Azure.
_NEEDED = {"test_minio.py": "minio", "test_azurite.py": "azure", "test_node.py": "azure"}

# The results of set-up, and the directory of the report.
DIRECTORY = Path(__file__).parents[2] / "var" / "acceptance"

# The official suite of the distribution specification.
CONFORMANCE = DIRECTORY / "bin" / "conformance"

RUNNING: dict[str, Callable[[Path, int], AbstractContextManager[Client]]] = {
    "docker": running_docker,
    "ctr": running_containerd,
    "podman": running_podman,
    "buildah": running_buildah,
    "skopeo": running_skopeo,
    "crane": running_crane,
}


KINDS: tuple[type[Client], ...] = (Docker, Containerd, Podman, Buildah, Skopeo, Crane)

WITHOUT_MIRRORS = {kind.name for kind in KINDS if kind.mirrored is None}


def _listed() -> dict[str, str]:
    """The clients, each with the reason if set-up could not install it."""
    try:
        lines = (DIRECTORY / "clients").read_text().splitlines()
    except FileNotFoundError:
        raise pytest.UsageError("the clients are not installed: run make acceptance") from None
    return {name: reason.strip() for name, _, reason in (line.partition(":") for line in lines)}


def _clients() -> list[str]:
    """The clients that set-up could install."""
    return [name for name, reason in _listed().items() if not reason]


def _login_clients() -> list[str]:
    """The clients, the builders whose base image needs credentials, and crictl."""
    return [
        *_clients(),
        "docker-build",
        "buildkit",
        "podman-build",
        "buildah-build",
        *sorted(_installed_builders()),
    ]


def _installed(file: str, what: str) -> set[str]:
    """The further programs of a file of set-up that set-up could install."""
    try:
        lines = (DIRECTORY / file).read_text().splitlines()
    except FileNotFoundError:
        raise pytest.UsageError(f"{what} are not installed: run make acceptance") from None
    return {line for line in lines if ":" not in line}


def _issuers() -> set[str]:
    """The OpenID Connect issuers that set-up could install."""
    return _installed("issuers", "the issuers")


def _stores() -> set[str]:
    return _installed("stores", "the bucket servers")


def _builders() -> list[str]:
    """The builders of the clients, and those that set-up could install."""
    return ["buildkit", "docker", "podman", "buildah", *({"kaniko"} & _installed_builders())]


def _installed_builders() -> set[str]:
    """kaniko, and crictl, which is none, as far as set-up could install them."""
    return _installed("builders", "the builders")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Deselect tests of a server that set-up reported as missing."""
    if collection_path.name == "test_dex.py":
        return None if "dex" in _issuers() else True
    if collection_path.name == "test_conformance.py":
        return None if CONFORMANCE.exists() else True
    needed = _NEEDED.get(collection_path.name)
    return True if needed is not None and needed not in _stores() else None


def _buckets() -> list[str]:
    """A bucket server of each kind; for S3 that of ``make test`` if MinIO could not be compiled."""
    there = _stores()
    return ["minio" if "minio" in there else "s3", "gcs", *sorted(there & {"azure"})]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bucket" in metafunc.fixturenames:
        metafunc.parametrize("bucket", _buckets(), indirect=True, scope="module")
    if "builder" in metafunc.fixturenames:
        metafunc.parametrize("builder", _builders(), indirect=True, scope="module")
    if "client" in metafunc.fixturenames:
        there = [name for name in _clients() if name in RUNNING]
        if metafunc.function.__name__ == "test_mirror":
            there = [name for name in there if name not in WITHOUT_MIRRORS]
        metafunc.parametrize("client", there, indirect=True, scope="session")
    if "mirrored" in metafunc.fixturenames:
        pullers = ["ctr", *({"crictl"} & _installed_builders())]
        metafunc.parametrize("mirrored", pullers, indirect=True, scope="module")
    if "login_client" in metafunc.fixturenames:
        metafunc.parametrize("login_client", _login_clients(), indirect=True, scope="session")


def server_with_debian(directory: Path, storage: Path, **settings: str) -> AbstractContextManager[Server]:
    always = {"NIXERY_PKGS_PATH": str(PACKAGE_SET), "NIX_TIMEOUT": "300", "STORAGE_PATH": str(storage)}
    return running_server(directory, {**always, **nix_environment(directory), **settings})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    with (
        short_lived_directory("nixery-storage-") as storage,
        server_with_debian(directory, storage) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def two_platforms(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with indexes, whose first platform is not that of this machine."""
    directory = tmp_path_factory.mktemp("two-platforms")
    with server_with_debian(directory, server.storage, NIXERY_PLATFORMS="linux/arm64,linux/amd64") as running:
        yield f"{HOST}:{running.port}"


@pytest.fixture(scope="session")
def zstd(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry whose layers are compressed with zstd."""
    directory = tmp_path_factory.mktemp("zstd")
    with server_with_debian(directory, server.storage, NIXERY_COMPRESSION="zstd") as running:
        yield f"{HOST}:{running.port}"


@pytest.fixture(scope="module")
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    name: str = request.param
    with (
        short_lived_directory(f"nixery-{name}-") as directory,
        RUNNING[name](directory, server.port) as running,
    ):
        yield running


@dataclass(frozen=True)
class Notes:
    """Notes of a test for the report."""

    # pytest passes them on with the result; its own fixture for that conflicts with JUnit reports.
    properties: list[tuple[str, object]]

    def note(self, text: str) -> None:
        self.properties.append(("note", text))

    def message(self, output: str) -> None:
        self.properties.append(("message", message_of(output)))


@pytest.fixture
def notes(client: Client, request: pytest.FixtureRequest) -> Notes:
    properties: list[tuple[str, object]] = request.node.user_properties
    properties.append(("versions", dict(client.versions())))
    return Notes(properties)


@pytest.fixture(scope="session")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    # A user for each client: the failed logins of one delay those of no other.
    with running_registry(tmp_path_factory.mktemp("access"), _login_clients()) as running:
        yield running


@pytest.fixture(scope="session")
def registry(server: Server) -> str:
    return f"{HOST}:{server.port}"


class Reporter:
    """Collects results as the tests end, and writes the report."""

    def __init__(self) -> None:
        self.report = Report(release(), not_tried={name: why for name, why in _listed().items() if why})
        # Remove the report of an earlier run.
        for file in DIRECTORY.glob("report.*"):
            file.unlink()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # The report has rows for clients alone.
        if not any(module in report.nodeid for module in _CLIENTS):
            return
        test, _, parameter = report.nodeid.rpartition("::")[2].partition("[")
        if parameter.removesuffix("]") not in _login_clients() or (
            report.when != "call" and not report.failed
        ):
            return
        assert test in TESTS | ACCESS_TESTS, f"scripts/acceptance/report.py has no row for {test}"
        client = self.report.clients.setdefault(parameter.removesuffix("]"), ClientReport())
        properties = dict(report.user_properties)
        if isinstance(versions := properties.get("versions"), dict):
            client.versions = versions
        note = str(properties.get("note", "")) if report.when == "call" else f"failed in {report.when}"
        client.results[test] = Result(report.outcome, note, str(properties.get("message", "")))

    def pytest_sessionfinish(self) -> None:
        if self.report.clients:
            self.report.write(DIRECTORY)


def pytest_configure(config: pytest.Config) -> None:
    # Like Ctrl-C, SIGTERM must not leave daemons and mounts behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.pluginmanager.register(Reporter(), "acceptance-report")
