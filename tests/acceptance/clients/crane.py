"""crane as a client, of go-containerregistry, the library in ko, kaniko and many others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from tests.acceptance.clients.client import FAILURE, MISSING, PULL, Outcome, Shell
from tests.support.pulled_image import PulledImage

# Installed by scripts/acceptance/install_clients.sh.
PROGRAM = Path(__file__).parents[3] / "var" / "acceptance" / "bin" / "crane"


@dataclass(frozen=True)
class Crane:
    """Pulls into OCI layouts; accepts plain HTTP from loopback addresses by default."""

    shell: Shell
    name: ClassVar[str] = "crane"
    # It has no mirrors.
    mirrored: ClassVar[str | None] = None
    missing: ClassVar[str] = MISSING
    failure: ClassVar[str] = FAILURE
    knows_zstd: ClassVar[bool] = True

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        return {"crane": self.shell.ask(str(PROGRAM), "version")}

    def pull(self, reference: str) -> Outcome:
        command = (str(PROGRAM), "pull", "--format=oci", reference, str(self._layout(reference)))
        return self.shell.call(command, PULL)

    def digest(self, reference: str) -> str:
        return PulledImage.from_oci_layout(self._layout(reference)).digest

    def layers(self, reference: str) -> int:
        return len(PulledImage.from_oci_layout(self._layout(reference)).layers)

    def run(self, reference: str, *command: str) -> str:
        """Export the file system and run the command in a chroot: crane runs nothing itself."""
        archive = self._layout(reference).with_suffix(".tar")
        root = archive.with_suffix(".root")
        # Validation assumes gzip for every layer, export does not.
        zstd = "tar+zstd" in self.shell.ask(str(PROGRAM), "manifest", reference)
        self.shell.ask(str(PROGRAM), "validate", *(("--fast",) if zstd else ()), "--remote", reference)
        self.shell.ask(str(PROGRAM), "export", reference, str(archive))
        root.mkdir()
        self.shell.ask("tar", "--extract", "--file", str(archive), "--directory", str(root))
        # crane does not set the PATH of the image's config.
        return self.shell.ask("chroot", str(root), f"/bin/{command[0]}", *command[1:])

    def _layout(self, reference: str) -> Path:
        return self.shell.directory / sha256(reference.encode()).hexdigest()[:16]


@contextmanager
def running_crane(directory: Path, mirror: int) -> Iterator[Crane]:  # noqa: ARG001 -- it has none
    """Pull into a directory; there is no daemon."""
    yield Crane(Shell(directory))
