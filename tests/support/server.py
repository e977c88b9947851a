"""The server under test: a process on a free port, ended by its process id."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.client import RegistryClient

HOST = "127.0.0.1"

# Seconds. The first only bounds a hang; a server promises to stop within 10.
_START = 120
_STOP = 15

# Settings of the developer that must not reach a server under test; the last one only slows down its imports.
_SETTINGS = (
    "NIXERY_",
    "NIX_TIMEOUT",
    "NIX_POPULARITY_URL",
    "STORAGE_PATH",
    "S3_",
    "GCS_",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "STORAGE_EMULATOR_HOST",
    "PORT",
    "PYTHONDONTWRITEBYTECODE",
)


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the tests with only the given settings of a server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return inherited | dict(settings)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        storage: its ``STORAGE_PATH``.
        output: file with its standard output and error.
        context: for clients of a server with TLS.
    """

    process: subprocess.Popen[bytes]
    port: int
    storage: Path
    output: Path
    context: ssl.SSLContext | None = None

    @property
    def client(self) -> RegistryClient:
        return RegistryClient(HOST, self.port, context=self.context)

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = _STOP) -> int:
        """Wait until it ends; return the exit code."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Stop it as a service manager would; return the exit code."""
        self.terminate()
        return self.wait()

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it has ended."""
        self.process.kill()
        self.process.wait(_STOP)

    def blob_path(self, digest: str) -> Path:
        encoded = digest.removeprefix("sha256:")
        return self.storage / "blobs" / "sha256" / encoded[:2] / encoded


@contextmanager
def running_server(
    directory: Path,
    settings: Mapping[str, str],
    arguments: Sequence[str] = ("-m", "nixery", "serve"),
    launcher: Sequence[str] = (),
    context: ssl.SSLContext | None = None,
) -> Iterator[Server]:
    """Run a server until the context ends, with its output and (unless ``STORAGE_PATH`` is given) its storage in a directory.

    Args:
        directory: created if it does not exist.
        settings: in addition to those that every server needs.
        arguments: of Python.
        launcher: a command that executes Python; see ``PrivateNix``.
        context: for clients, of a server with TLS.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = int(settings.get("PORT", free_port()))
    storage = Path(settings.get("STORAGE_PATH", directory / "storage"))
    output = directory / f"server-{port}.log"
    environment = clean_environment(
        {
            "PORT": str(port),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(storage),
            "NIX_TIMEOUT": "30",
            # Otherwise each server evaluates its whole package set in the background: `tests/packageset` has
            # an attribute that takes half a minute, and tests count processes of Nix and calls of a spy.
            "NIXERY_INDEX": "0",
            **settings,
        }
    )
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*launcher, sys.executable, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    server = Server(process, port, storage, output, context)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        end_process(process)
        sys.stdout.write(server.log)  # pytest shows it where a test fails


def run_server(
    settings: Mapping[str, str], directory: Path, seconds: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a server that should exit, such as one with wrong settings."""
    return subprocess.run(
        [sys.executable, "-m", "nixery", "serve"],
        env=clean_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=directory,
    )


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + _START
    while time.monotonic() < end:
        assert server.process.poll() is None, (
            f"the server ended with {server.process.returncode}:\n{server.log}"
        )
        try:
            if server.client.get("/v2/").status in (200, 401):
                return
        except OSError:
            pass
        time.sleep(0.03)
    raise AssertionError(f"the server did not answer within {_START} seconds:\n{server.log}")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process with SIGTERM, or with SIGKILL if that has no effect."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
