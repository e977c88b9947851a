"""A server in a process: started, waited for until it answers, and ended by its id."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"

# Seconds.
_START = 30.0
_STOP = 12.0  # nixery stops within 10
_LOG_LINES = 30


class PeerError(Exception):
    """A server fails; the message has the end of its log."""


@dataclass(frozen=True)
class Peer:
    """A running server.

    Attributes:
        name: as results show it.
        port: on the loopback interface.
        process: may have children.
        log: file with its output.
        headers: credentials, which it needs with each request.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def process_id(self) -> int:
        """The id of its process."""
        return self.process.pid

    def stop(self) -> None:
        """Stop it with SIGTERM.

        Raises:
            PeerError: it does not end in time, or with another status than 0.
        """
        self.process.terminate()
        try:
            status = self.process.wait(_STOP)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{self.name} still runs {_STOP:g} s after SIGTERM:\n{tail(self.log)}") from None
        if status != 0:
            raise PeerError(f"{self.name} ended with status {status} after SIGTERM:\n{tail(self.log)}")

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    path: str = "/v2/",
) -> Iterator[Peer]:
    """Run a server until the context ends.

    Args:
        name: as results show it.
        command: stays in the foreground, listens on the port, and ends on SIGTERM.
        port: the port.
        log: file for its output.
        environment: added to that of this process.
        path: the server answers it with 200 once it is ready.

    Raises:
        PeerError: it does not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
        )
    try:
        _wait_until_ready(name, process, port, path, log)
        yield Peer(name, port, process, log)
    finally:
        _end(process)


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    end = time.monotonic() + _START
    while not _answers(port, path):
        if process.poll() is not None:
            raise PeerError(f"{name} ended with status {process.returncode}:\n{tail(log)}")
        if time.monotonic() > end:
            raise PeerError(f"{name} did not answer within {_START:g} s:\n{tail(log)}")
        time.sleep(0.05)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
