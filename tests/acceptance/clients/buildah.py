"""buildah as a client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.acceptance.clients.client import BUILD, FAILURE, LOW_LIMITS, MISSING, PULL, Outcome, Shell
from tests.acceptance.clients.registries import MIRRORED, plain_http, write_registries


@dataclass(frozen=True)
class Buildah:
    """buildah, which builds on top of nixery's images."""

    shell: Shell
    buildah: tuple[str, ...]
    name: ClassVar[str] = "buildah"
    mirrored: ClassVar[str | None] = MIRRORED
    missing: ClassVar[str] = MISSING
    failure: ClassVar[str] = FAILURE
    knows_zstd: ClassVar[bool] = True

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        return {"buildah": self._ask("--version").split()[2]}

    def pull(self, reference: str) -> Outcome:
        return self.shell.call(
            (*self.buildah, "pull", *plain_http(reference, "--tls-verify"), reference), PULL
        )

    def digest(self, reference: str) -> str:
        digest: str = self._inspect(reference)["FromImageDigest"]
        return digest

    def layers(self, reference: str) -> int:
        return len(self._inspect(reference)["OCIv1"]["rootfs"]["diff_ids"])

    def run(self, reference: str, *command: str) -> str:
        container = self._ask("from", "--pull-never", *LOW_LIMITS, reference).splitlines()[-1]
        try:
            return self._ask("run", "--isolation", "chroot", container, "--", *command)
        finally:
            self._ask("rm", container)

    def build(self, context: Path, reference: str) -> Outcome:
        """Build the image of a directory with a Dockerfile."""
        return self.shell.call((*self.buildah, "build", *BUILD, "--tag", reference, str(context)), PULL)

    def _inspect(self, reference: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._ask("inspect", "--type", "image", reference))
        return document

    def _ask(self, *arguments: str) -> str:
        return self.shell.ask(*self.buildah, *arguments)


@contextmanager
def running_buildah(directory: Path, mirror: int) -> Iterator[Buildah]:
    """Use a storage below a directory; there is no daemon."""
    registries = write_registries(directory, mirror)
    buildah = (
        *("env", f"CONTAINERS_REGISTRIES_CONF={registries}", "buildah"),
        *("--root", str(directory / "root")),
        *("--runroot", str(directory / "run")),
        "--storage-driver=overlay",
    )
    yield Buildah(Shell(directory), buildah)
