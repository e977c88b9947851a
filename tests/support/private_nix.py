"""A private Nix store, whose garbage a test may collect.

Its processes have a directory of the test mounted at ``/nix`` in their own mount namespace: store paths are
as usual, and the store of the machine is unreachable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.nix import CONFIGURATION

# Seconds.
_TIMEOUT = 60


@dataclass(frozen=True)
class PrivateNix:
    """An empty store in a directory."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> PrivateNix:
        """Create the directory."""
        (directory / "nix" / "store").mkdir(parents=True)
        (directory / "etc").mkdir()
        (directory / "etc" / "nix.conf").write_text(CONFIGURATION)
        return cls(directory)

    @property
    def launcher(self) -> Sequence[str]:
        """The prefix of a command that uses this store; it keeps its process id."""
        as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        mount = 'mount --bind "$1" /nix && shift && exec "$@"'
        return ("unshare", *as_root, "--mount", "sh", "-c", mount, "sh", str(self.directory / "nix"))

    def environment(self) -> Mapping[str, str]:
        return {"NIX_CONF_DIR": str(self.directory / "etc")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.launcher, *command],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )

    def collect_garbage(self) -> None:
        completed = self.run("nix-store", "--gc")
        assert completed.returncode == 0, completed.stderr

    @contextmanager
    def collecting_all_the_time(self) -> Iterator[list[int]]:
        """Collect garbage repeatedly until the context ends.

        Yields:
            The number of deleted store paths of each run.
        """
        collected: list[int] = []
        stop = threading.Event()

        def collect() -> None:
            while not stop.is_set():
                completed = self.run("nix-store", "--gc")
                collected.append(completed.stderr.count("deleting '"))
                stop.wait(0.02)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield collected
        finally:
            stop.set()
            thread.join(_TIMEOUT)

    def remove(self) -> None:
        """Delete the store, which is read-only."""
        subprocess.run(["chmod", "-R", "u+w", str(self.directory)], check=False, timeout=_TIMEOUT)
        shutil.rmtree(self.directory, ignore_errors=True)
