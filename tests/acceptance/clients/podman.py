"""podman with runc as a client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.acceptance.clients.client import BUILD, FAILURE, LOW_LIMITS, MISSING, PULL, Outcome, Shell
from tests.acceptance.clients.registries import MIRRORED, plain_http, write_registries


@dataclass(frozen=True)
class Podman:
    """podman as root, without a network for containers."""

    shell: Shell
    podman: tuple[str, ...]
    name: ClassVar[str] = "podman"
    mirrored: ClassVar[str | None] = MIRRORED
    missing: ClassVar[str] = MISSING
    failure: ClassVar[str] = FAILURE
    knows_zstd: ClassVar[bool] = True

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        return {"podman": self._ask("version", "--format", "{{.Client.Version}}")}

    def pull(self, reference: str) -> Outcome:
        return self.shell.call(
            (*self.podman, "pull", *plain_http(reference, "--tls-verify"), reference), PULL
        )

    def digest(self, reference: str) -> str:
        digest: str = self._inspect(reference)["Digest"]
        return digest

    def layers(self, reference: str) -> int:
        return len(self._inspect(reference)["RootFS"]["Layers"])

    def run(self, reference: str, *command: str) -> str:
        return self._ask(
            *("run", "--rm", "--network=none"),
            *LOW_LIMITS,
            reference,
            *command,
        )

    def run_with(self, options: Sequence[str], reference: str, *command: str) -> Outcome:
        """Run a command in the image, with options for the container."""
        always = ("run", "--rm", "--network=none", *LOW_LIMITS)
        return self.shell.call((*self.podman, *always, *options, reference, *command))

    def build(self, context: Path, reference: str) -> Outcome:
        """Build the image of a directory with a Dockerfile."""
        return self.shell.call((*self.podman, "build", *BUILD, "--tag", reference, str(context)), PULL)

    def load(self, archive: Path) -> Outcome:
        """Load the image of an archive under the name that is in it."""
        return self.shell.call((*self.podman, "load", "--input", str(archive)), PULL)

    def _inspect(self, reference: str) -> dict[str, Any]:
        (document,) = json.loads(self._ask("image", "inspect", reference))
        inspected: dict[str, Any] = document
        return inspected

    def _ask(self, *arguments: str) -> str:
        return self.shell.ask(*self.podman, *arguments)


@contextmanager
def running_podman(directory: Path, mirror: int) -> Iterator[Podman]:
    """Use a storage below a directory; there is no daemon."""
    registries = write_registries(directory, mirror)
    podman = (
        *("env", f"CONTAINERS_REGISTRIES_CONF={registries}", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman"),
        *("--root", str(directory / "root")),
        *("--runroot", str(directory / "run")),
        *("--tmpdir", str(directory / "libpod")),
        *("--storage-driver=overlay", "--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"),
    )
    yield Podman(Shell(directory), podman)
