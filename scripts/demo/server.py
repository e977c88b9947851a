"""The server under demonstration: started on a free port, stopped by its process id."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.demo.narrator import DemoError, Narrator

_NIXERY = ".venv/bin/nixery"
_START_SECONDS = 30.0
# The server promises to be gone within 10 seconds.
_STOP_SECONDS = 10.0
_LOG_LINES = 30


@contextmanager
def serving(narrator: Narrator, directory: Path) -> Iterator[str]:
    """Serve while the context lasts; gives ``host:port``.

    Args:
        narrator: is told the steps.
        directory: takes the server's storage and log.

    Raises:
        DemoError: the server does not start, or does not stop as it should.
    """
    registry = f"127.0.0.1:{_free_port()}"
    log = directory / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            (_NIXERY, "serve"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | _settings(registry, directory / "storage"),
        )
    try:
        with narrator.step(f"the server listens on {registry} (process {server.pid})"):
            _wait_until_it_answers(server, registry, log)
        try:
            yield registry
        except DemoError as error:
            error.output += f"\nthe end of the server's log:\n{_tail(log)}"
            raise
        with narrator.step(f"the server stops on SIGTERM to process {server.pid}"):
            _stop(server, log)
    finally:
        _make_sure_it_has_ended(server)


def _settings(registry: str, storage: Path) -> dict[str, str]:
    host, _, port = registry.partition(":")
    return {
        "NIXERY_HOST": host,
        "PORT": port,
        "NIXERY_PKGS_PATH": "packagesets/debian",
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(storage),
        "NIX_TIMEOUT": "150",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_it_answers(server: subprocess.Popen[bytes], registry: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(registry):
        if server.poll() is not None:
            raise DemoError(f"the server ended with status {server.returncode}", _tail(log))
        if time.monotonic() > deadline:
            raise DemoError(f"the server does not answer after {_START_SECONDS:g} s", _tail(log))
        time.sleep(0.05)


def _answers(registry: str) -> bool:
    # A proxy that the environment names is not meant for this machine's own addresses.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{registry}/v2/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _stop(server: subprocess.Popen[bytes], log: Path) -> None:
    server.terminate()
    try:
        status = server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the server still runs {_STOP_SECONDS:g} s after SIGTERM", _tail(log)) from None
    if status != 0:
        raise DemoError(f"the server ended with status {status} after SIGTERM", _tail(log))


def _make_sure_it_has_ended(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
