"""One round: a cold build, a kill, and what the next server makes of it."""

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

# Of everything a bit: several derivations, one that takes its time, many layers, and one of some megabytes.
NAME = "shell/crash/many/diamond/outputs"

# Seconds that everything a killed server has started may take to end.
_LIMIT = 10

# Seconds that Nix may take for an undisturbed build, and what the server says when it is done.
_BUILD = 60
_REALISED = '"event": "realised"'

# In front of the set of the tests: a package that takes a while to build, and one that takes a while to pack.
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
class Undisturbed:
    """What a build is like that nobody disturbs.

    Attributes:
        digest: of the manifest.
        seconds: from the request to the answer.
        after_nix: those of them that come after Nix: for packing and storing.
        layers: how many it has.
    """

    digest: str
    seconds: float
    after_nix: float
    layers: int


class Crash:
    """Rounds in a directory, each with a Nix store and a storage of its own, which are empty when it begins."""

    def __init__(self, directory: Path, mark: str) -> None:
        self._directory = directory
        self._mark = mark
        self._set = directory / "set"
        self._set.mkdir(parents=True)
        (self._set / "default.nix").write_text(_PACKAGE_SET.format(tests=PACKAGE_SETS, mark=mark))

    def collector_paused(self) -> Undisturbed:
        """Build without a crash."""
        with (
            self._stores("undisturbed") as (nix, settings),
            self._server("undisturbed", nix, settings) as server,
        ):
            begin = time.monotonic()
            request = InBackground(server.client, f"/v2/{NAME}/manifests/latest").start()
            _wait_for_nix(server)
            nix_ended = time.monotonic()
            request.outcome()
            end = time.monotonic()
            image = validate(server.client.pull(NAME))
            layers = _layers(server.storage)
        return Undisturbed(image.digest, end - begin, end - nix_ended, layers)

    def disturbed(self, moment: float, expected: Undisturbed, *, after_nix: bool = False) -> str:
        """Kill a server some seconds after it was asked, start another one, and look at everything.

        Args:
            moment: when it is killed.
            expected: what it has to give.
            after_nix: whether the seconds count from when everything is realised.

        Returns:
            How far the build had come, in words.

        Raises:
            AssertionError: something is not as it has to be.
        """
        with self._stores("disturbed") as (nix, settings):
            with self._server("first", nix, settings) as server:
                request = InBackground(server.client, f"/v2/{NAME}/manifests/latest").start()
                if after_nix:
                    _wait_for_nix(server)
                time.sleep(moment)
                server.process.send_signal(signal.SIGKILL)
                server.wait()
                request.outcome()
                reached = _reached(server, expected.layers)
            wait_until(lambda: not processes_with_environment(self._mark), "no builder is left", _LIMIT)
            wait_until(
                lambda: not processes_with_environment(f"STORAGE_PATH={server.storage}"),
                "nothing that the server started is left",
                _LIMIT,
            )
            with self._server("second", nix, settings) as server:
                _require_clean(server.storage)
                digest = server.client.digest(NAME)
                _require(digest == expected.digest, f"{digest} is not {expected.digest}")
                validate(server.client.pull(NAME))
                require_true_blobs(server.storage, server.client)
                _require(server.stop() == 0, "it does not stop as it should")
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
                    # It says then when everything is realised.
                    "NIXERY_LOG_LEVEL": "debug",
                },
            )
        finally:
            nix.remove()

    @contextmanager
    def _server(self, name: str, nix: PrivateNix, settings: Mapping[str, str]) -> Iterator[Server]:
        directory = self._directory / "logs" / name
        shutil.rmtree(directory, ignore_errors=True)
        # Its log is written there when it ends, and of interest only if something goes wrong.
        log = StringIO()
        try:
            with redirect_stdout(log), running_server(directory, settings, launcher=nix.launcher) as server:
                yield server
        except BaseException:
            print(log.getvalue())
            raise


def _wait_for_nix(server: Server) -> None:
    wait_until(lambda: _REALISED in server.log, "everything is realised", _BUILD, every=0.002)


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
    """All blobs there are, those of the build that was not finished too."""
    for path in (storage / "blobs" / "sha256").glob("*/*"):
        if path.suffix == ".size":
            continue
        digest = f"sha256:{path.name}"
        try:
            response = client.blob("any", digest)
        except http.client.HTTPException as error:
            raise AssertionError(f"{digest} is not served as a whole") from error
        if response.status == 404:  # noqa: PLR2004 -- one without its size: it is not there
            continue
        _require(hashlib.sha256(response.body).hexdigest() == path.name, f"{digest} is another")
