"""A Nix store that only its daemon may write to, and an unprivileged server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import nixery
from tests.support.nix import PACKAGE_SETS, wait_until
from tests.support.repository import Repository
from tests.support.server import Server, clean_environment, running_server
from tests.validator.image_validator import validate

pytestmark = pytest.mark.security

_NOBODY = 65534

# Root becomes the user nobody after all imports, since that user may not be able to read Python's files. It
# runs the command itself, without the command line, which imports lazily.
_AS_NOBODY = f"""
import encodings.idna, importlib.readers, os
import uvloop, nixery.app, nixery.cli.logs, nixery.nix.processes, nixery.server.serve
from nixery.cli.serve import serve
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({_NOBODY})
    os.setuid({_NOBODY})
serve()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the user nobody can reach and write to."""
    place = Path(tempfile.mkdtemp(prefix="nixery-daemon-"))
    try:
        if os.geteuid() == 0:
            os.chown(place, _NOBODY, _NOBODY)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def daemon(directory: Path, settings: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Run a daemon with its own socket; yield the environment of its clients."""
    # Not in the server's directory: the daemon's log must be separate.
    socket = directory / "socket"
    environment = {**settings, "NIX_DAEMON_SOCKET_PATH": str(socket)}
    process = subprocess.Popen(
        ["nix-daemon"],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(socket.exists, "the daemon's socket")
        yield {**environment, "NIX_REMOTE": "daemon", "HOME": str(directory)}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(15)


@contextmanager
def server(directory: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    storage, ours = directory / "storage", directory / "python"
    # The package's own files are read later, by Nix too.
    # Python's compiled files may be readable for root only.
    code = Path(nixery.__file__).parent
    shutil.copytree(code, ours / "nixery", ignore=shutil.ignore_patterns("__pycache__"))
    chosen = {**settings, "STORAGE_PATH": str(storage), "PYTHONPATH": str(ours)}
    with running_server(directory, chosen, arguments=("-c", _AS_NOBODY)) as running:
        if os.geteuid() == 0:
            assert storage.stat().st_uid == _NOBODY
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


def test_a_directory(directory: Path, settings: Mapping[str, str]) -> None:
    shutil.copytree(PACKAGE_SETS, directory / "set")
    with daemon(directory, settings) as environment:
        source = {"NIXERY_PKGS_PATH": str(directory / "set")}
        with server(directory, {**environment, **source}) as running:
            image = validate(running.client.pull("shell/hello/diamond"))
            assert "bin/hello" in image.filesystem
            assert running.client.manifest("nosuch").status == 404
            assert running.client.manifest("fails").status == 422
            roots = directory / "storage" / "gc-roots"
            assert [path for path in roots.rglob("*") if path.is_symlink()] == []


def test_a_repository(directory: Path, settings: Mapping[str, str]) -> None:
    repository = Repository(directory / "repository")
    commit = repository.commit("1.0")
    if os.geteuid() == 0:
        for path in (repository.directory, *repository.directory.rglob("*")):
            os.lchown(path, _NOBODY, _NOBODY)
    others = {name: value for name, value in settings.items() if name != "NIXERY_PKGS_PATH"}
    with daemon(directory, others) as environment:
        source = {"NIXERY_PKGS_REPO": repository.url}
        with server(directory, {**environment, **source}) as running:
            image = validate(running.client.pull("hello", commit))
            assert image.filesystem.read("share/version") == b"1.0\n"
