"""kaniko, which builds images in a container without a daemon: it unpacks the base image over its own root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @staticmethod
    def version() -> str:
        """The version that set-up compiled."""
        return PROGRAM.with_name("version").read_text().strip().rpartition("@")[2]

    def build(self, context: Path, name: str) -> Outcome:
        """Build the image of a directory with a Dockerfile."""
        directory = self.podman.shell.directory / "kaniko"
        archive = directory / "made" / "image.tar"
        archive.parent.mkdir(parents=True)
        command = self.command(directory, context, name, {archive.parent: "/made"})
        outcome = self.podman.shell.call((*command, f"--tar-path=/made/{archive.name}"), PULL)
        return outcome if outcome.status else self.podman.load(archive)

    def command(self, directory: Path, context: Path, name: str, mounts: Mapping[Path, str]) -> Sequence[str]:
        """Return the command that builds the image of a directory with a Dockerfile.

        Args:
            directory: gets the root of the container.
            context: with the Dockerfile.
            name: of the image.
            mounts: further ones of the container.
        """
        root = directory / "root"
        root.mkdir(parents=True)
        every = {PROGRAM: "/kaniko/executor:ro", context: "/workspace:ro", **mounts}
        return (
            *(*self.podman.podman, "run", "--rm", "--network=host", *LOW_LIMITS),
            # As the official image sets it.
            "--env=DOCKER_CONFIG=/kaniko/.docker",
            *(f"--volume={source}:{place}" for source, place in every.items()),
            *("--rootfs", str(root)),
            *("/kaniko/executor", "--force", "--insecure-pull", "--context=dir:///workspace"),
            *("--no-push", f"--destination=localhost/{name}"),
        )
