"""The interface of all clients, and a runner for their programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from tests.support.nix import wait_until
from tests.support.server import end_process

# Seconds. A pull may wait for packages to be fetched.
PULL = 300
COMMAND = 90
_START = 60

# Debian's programs, whose versions fit each other, rather than those in /usr/local.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Outcome:
    """A finished command, with both output streams in their order."""

    status: int
    output: str

    def expect_success(self) -> str:
        assert self.status == 0, self.output
        return self.output


class Client(Protocol):
    """A client with its own storage.

    References are ``host:port/name:tag`` or ``host:port/name@digest``.

    Attributes:
        name: its name in the report.
        mirrored: a host whose images it pulls through the server under test as a mirror; ``None`` if it has
            no mirrors.
        missing: its message for a missing package.
        failure: its message for a failed build.
        knows_zstd: whether it supports zstd layers; older Dockers do not.
    """

    name: ClassVar[str]
    mirrored: ClassVar[str | None]
    missing: ClassVar[str]
    failure: ClassVar[str]

    @property
    def knows_zstd(self) -> bool: ...

    def versions(self) -> Mapping[str, str]:
        """The versions of all the programs involved."""

    def pull(self, reference: str) -> Outcome: ...

    def digest(self, reference: str) -> str:
        """The digest of the manifest that the client recorded."""

    def layers(self, reference: str) -> int:
        """The number of the image's layers at the client."""

    def run(self, reference: str, *command: str) -> str:
        """Run a command in the image; return its output."""


# podman and buildah raise limits by default, which a machine without CAP_SYS_RESOURCE does not allow.
LOW_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")

# podman and buildah build without a container for each step, which the tests' machine may not allow.
BUILD = ("--tls-verify=false", "--isolation=chroot", "--network=host", *LOW_LIMITS)

# The part of an error that clients must show if they show errors at all.
MISSING = "packages not available: htpo (missing; did you mean"
FAILURE = "configure: error: the philosopher's stone is needed to build failing"


@dataclass(frozen=True)
class Shell:
    """Runs programs in an environment without the user's configuration, credentials and proxies."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        for name in ("home", "tmp"):
            (self.directory / name).mkdir(exist_ok=True)
        return {
            "PATH": PATH,
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "LC_ALL": "C.UTF-8",
        }

    def call(self, command: Sequence[str], seconds: float = COMMAND) -> Outcome:
        """Run a program until it exits.

        Raises:
            subprocess.TimeoutExpired: it did not exit in time.
        """
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env=self.environment,
            cwd=self.directory,
        )
        return Outcome(done.returncode, done.stdout)

    def ask(self, *command: str) -> str:
        """Run a program that must succeed; return its standard output."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND,
            check=False,
            env=self.environment,
            cwd=self.directory,
        )
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    @contextmanager
    def daemon(self, command: Sequence[str], answers: Sequence[str]) -> Iterator[None]:
        """Run a daemon until the context ends; the command ``answers`` succeeds once it is ready."""
        log = self.directory / "daemon.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.directory,
                # Ctrl-C goes to the tests alone, which then end the daemon in order.
                start_new_session=True,
            )
        try:
            wait_until(
                lambda: process.poll() is not None or self.call(answers).status == 0,
                f"{command[0]} answers",
                _START,
            )
            assert process.poll() is None, f"{command[0]} ended:\n{log.read_text(errors='replace')}"
            yield
        finally:
            end_process(process)


def host_of(reference: str) -> str:
    return reference.partition("/")[0]


def installed_version(package: str) -> str:
    """Return the version of a Debian package."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=COMMAND, env={**os.environ, "PATH": PATH}
    ).stdout
