"""A server in a process of its own: started, waited for, and ended by its process id."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"

# Seconds.
_START = 30.0
_STOP = 12.0
_LOG_LINES = 30


class PeerError(Exception):
    """A server does not do what it was started for; the message has the end of its log."""


@dataclass(frozen=True)
class Peer:
    """A running server.

    Attributes:
        name: for people.
        port: on loopback.
        process_id: of the process that was started; it may have children.
    """

    name: str
    port: int
    process_id: int

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"


def free_port() -> int:
    """Find a TCP port that nobody listens on."""
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
    """Run a server while the context lasts.

    Args:
        name: for people.
        command: stays in the foreground, listens on the port, and ends on SIGTERM.
        port: it listens on.
        log: file for what it prints.
        environment: added to ours.
        path: is answered with 200 as soon as it is ready.

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
        _wait_until_it_answers(name, process, port, path, log)
        yield Peer(name, port, process.pid)
    finally:
        _end(process)


def _wait_until_it_answers(
    name: str, process: subprocess.Popen[bytes], port: int, path: str, log: Path
) -> None:
    end = time.monotonic() + _START
    while not _answers(port, path):
        if process.poll() is not None:
            raise PeerError(f"{name} ended with status {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > end:
            raise PeerError(f"{name} did not answer within {_START:g} s:\n{_tail(log)}")
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


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
