"""One round: a cold build, a kill, and the checks of the next server."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tests.support.client import InBackground, RegistryClient
from tests.support.nix import PACKAGE_SETS, processes_with_environment, wait_until
from tests.support.private_nix import PrivateNix
from tests.support.server import Server, running_server
from tests.validator.image_validator import validate

# Several derivations, one of them slow, many layers, and one of several megabytes.
NAME = "shell/crash/many/diamond/outputs"

# Seconds for the processes of a killed server to end.
_END_TIMEOUT = 10

# Seconds for Nix to build everything, and the log event that follows.
_BUILD_TIMEOUT = 60
_REALISED = '"event": "realised"'

# The package set of the tests with a package that takes a while to build and to pack.
_PACKAGE_SET = """\
arguments:
let set = import {tests} arguments; in
set // {{
  crash = derivation {{
    name = "crash-1.0";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "sleep 0.5; mkdir $out; for n in 1 2 3 4 5 6 7 8; do seq 1 200000 > $out/$n; done" ];
    PATH = "/usr/bin:/bin";
    nixeryTestSalt = "{mark}";
  }};
}}
"""


@dataclass(frozen=True)
class UninterruptedBuild:
    """A build without a crash.

    Attributes:
        digest: of the manifest.
        seconds: from the request to the response.
        after_nix: those of them after Nix, for packing and storing.
        layers: number of layers.
    """

    digest: str
    seconds: float
    after_nix: float
    layers: int


class Crash:
    """Runs rounds in a directory, each with an empty Nix store and an empty storage."""

    def __init__(self, directory: Path, mark: str) -> None:
        self._directory = directory
        self._mark = mark
        self._set = directory / "set"
        self._set.mkdir(parents=True)
        (self._set / "default.nix").write_text(_PACKAGE_SET.format(tests=PACKAGE_SETS, mark=mark))

    def uninterrupted(self) -> UninterruptedBuild:
        """Build without a crash."""
        with (
            self._stores("uninterrupted") as (nix, settings),
            self._server("uninterrupted", nix, settings) as server,
        ):
            begin = time.monotonic()
            request = InBackground(server.client, f"/v2/{NAME}/manifests/latest").start()
            _wait_for_nix(server)
            nix_ended = time.monotonic()
            request.outcome()
            end = time.monotonic()
            image = validate(server.client.pull(NAME))
            layers = _layers(server.storage)
        return UninterruptedBuild(image.digest, end - begin, end - nix_ended, layers)

    def interrupted(self, moment: float, expected: UninterruptedBuild, *, after_nix: bool = False) -> str:
        """Kill a server some seconds after a request, start another one, and check everything.

        Args:
            moment: seconds until the kill.
            expected: the build to compare with.
            after_nix: count the seconds from the end of Nix.

        Returns:
            The progress of the killed build, for the output.

        Raises:
            AssertionError: a check failed.
        """
        with self._stores("interrupted") as (nix, settings):
            with self._server("first", nix, settings) as server:
                request = InBackground(server.client, f"/v2/{NAME}/manifests/latest").start()
                if after_nix:
                    _wait_for_nix(server)
                time.sleep(moment)
                server.process.send_signal(signal.SIGKILL)
                server.wait()
                request.outcome()
                reached = _reached(server, expected.layers)
            wait_until(lambda: not processes_with_environment(self._mark), "no builder is left", _END_TIMEOUT)
            wait_until(
                lambda: not processes_with_environment(f"STORAGE_PATH={server.storage}"),
                "no process of the server is left",
                _END_TIMEOUT,
            )
            with self._server("second", nix, settings) as server:
                _require_clean(server.storage)
                digest = server.client.digest(NAME)
                _require(digest == expected.digest, f"{digest} is not {expected.digest}")
                validate(server.client.pull(NAME))
                require_true_blobs(server.storage, server.client)
                _require(server.stop() == 0, "the server does not stop with status 0")
        return reached

    @contextmanager
    def _stores(self, name: str) -> Iterator[tuple[PrivateNix, Mapping[str, str]]]:
        directory = self._directory / name
        nix = PrivateNix.create(directory)
        try:
            storage = directory / "storage"
            yield (
                nix,
                {
                    **nix.environment(),
                    "NIXERY_PKGS_PATH": str(self._set),
                    "STORAGE_PATH": str(storage),
                    # Logs the end of Nix.
                    "NIXERY_LOG_LEVEL": "debug",
                },
            )
        finally:
            nix.remove()

    @contextmanager
    def _server(self, name: str, nix: PrivateNix, settings: Mapping[str, str]) -> Iterator[Server]:
        directory = self._directory / "logs" / name
        shutil.rmtree(directory, ignore_errors=True)
        # running_server prints its log at the end, which is useful only after a failure.
        log = StringIO()
        try:
            with redirect_stdout(log), running_server(directory, settings, launcher=nix.launcher) as server:
                yield server
        except BaseException:
            print(log.getvalue())
            raise


def _wait_for_nix(server: Server) -> None:
    wait_until(lambda: _REALISED in server.log, "everything is realised", _BUILD_TIMEOUT, every=0.002)


def _layers(storage: Path) -> int:
    return len(list((storage / "records" / "layers").glob("*/*")))


def _reached(server: Server, of_layers: int) -> str:
    layers = _layers(server.storage)
    if any((server.storage / "records" / "images").glob("*/*")):
        return "stored"
    if layers == of_layers:
        return "storing, all layers stored"
    if layers or any(path.is_file() for path in (server.storage / "temporary").rglob("*")):
        return f"packing, {layers} of {of_layers} layers stored"
    if _REALISED in server.log:
        return "realised"
    return "realising" if "building" in server.log else "evaluating"


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _require_clean(storage: Path) -> None:
    left = [path for path in (storage / "temporary").rglob("*") if path.is_file()]
    left += [path for path in (storage / "gc-roots").rglob("*") if path.is_symlink()]
    left += list((storage / "locks").iterdir())
    _require(not left, f"left behind: {left}")


def require_true_blobs(storage: Path, client: RegistryClient) -> None:
    """Check every blob in a storage, those of interrupted builds included."""
    for path in (storage / "blobs" / "sha256").glob("*/*"):
        if path.suffix == ".size":
            continue
        digest = f"sha256:{path.name}"
        try:
            response = client.blob("any", digest)
        except http.client.HTTPException as error:
            raise AssertionError(f"{digest} is served incompletely") from error
        if response.status == 404:  # noqa: PLR2004 -- a blob without its size counts as missing
            continue
        _require(hashlib.sha256(response.body).hexdigest() == path.name, f"{digest} has other content")
