"""kaniko, which builds images in a container without a daemon: it unpacks the base image over its own root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.clients.client import LOW_LIMITS, PULL, Outcome
from tests.acceptance.clients.podman import Podman

# Installed by scripts/acceptance/install_builders.sh.
PROGRAM = Path(__file__).parents[3] / "var" / "kaniko" / "executor"


@dataclass(frozen=True)
class Kaniko:
    """kaniko's executor, as the only program of a container of podman, which gets the images."""

    podman: Podman

    def build(self, context: Path, name: str) -> Outcome:
        """Build the image of a directory with a Dockerfile."""
        directory = self.podman.shell.directory / "kaniko"
        root, archive = directory / "root", directory / "made" / "image.tar"
        root.mkdir(parents=True)
        archive.parent.mkdir()
        mounts = {PROGRAM: "/kaniko/executor:ro", context: "/workspace:ro", archive.parent: "/made"}
        outcome = self.podman.shell.call(
            (
                *(*self.podman.podman, "run", "--rm", "--network=host", *LOW_LIMITS),
                *(f"--volume={source}:{place}" for source, place in mounts.items()),
                *("--rootfs", str(root)),
                *("/kaniko/executor", "--force", "--insecure-pull", "--context=dir:///workspace"),
                *("--no-push", f"--destination=localhost/{name}", f"--tar-path=/made/{archive.name}"),
            ),
            PULL,
        )
        return outcome if outcome.status else self.podman.load(archive)
