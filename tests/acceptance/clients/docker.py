"""docker with dockerd as a client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.acceptance.clients.client import FAILURE, MISSING, PULL, Outcome, Shell
from tests.support.server import HOST

_FIRST_WITH_ZSTD = 23


class Docker:
    """The command line with a daemon of the tests."""

    name: ClassVar[str] = "docker"
    # dockerd supports mirrors of this registry alone.
    mirrored: ClassVar[str | None] = "docker.io"
    missing: ClassVar[str] = MISSING
    failure: ClassVar[str] = FAILURE

    def __init__(self, shell: Shell, socket: Path) -> None:
        self.shell = shell
        self.command = ("docker", "--host", f"unix://{socket}")

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        version = json.loads(self._ask("version", "--format", "{{json .}}"))
        return {"docker": version["Client"]["Version"], "dockerd": version["Server"]["Version"]}

    @property
    def knows_zstd(self) -> bool:
        return int(self.versions()["dockerd"].partition(".")[0]) >= _FIRST_WITH_ZSTD

    def pull(self, reference: str) -> Outcome:
        return self.shell.call((*self.command, "pull", reference), PULL)

    def digest(self, reference: str) -> str:
        # Docker records it by repository, without the name of its own registry.
        repository = reference.partition("@")[0].removeprefix("docker.io/").removesuffix(":latest")
        noted: list[str] = self._inspect(reference)["RepoDigests"]
        (digest,) = {name.partition("@")[2] for name in noted if name.startswith(f"{repository}@")}
        return digest

    def layers(self, reference: str) -> int:
        return len(self._inspect(reference)["RootFS"]["Layers"])

    def run(self, reference: str, *command: str) -> str:
        return self._ask("run", "--rm", "--network=none", reference, *command)

    def run_with(self, options: Sequence[str], reference: str, *command: str) -> Outcome:
        """Run a command in the image, with options for the container."""
        return self.shell.call(
            (*self.command, "run", "--rm", "--network=none", *options, reference, *command)
        )

    def build(self, context: Path, reference: str, *, by_buildkit: bool) -> Outcome:
        """Build the image of a directory with a Dockerfile, by BuildKit or by the classic builder."""
        environment = ("env", f"DOCKER_BUILDKIT={int(by_buildkit)}")
        options = ("--network=none", "--tag", reference, str(context))
        return self.shell.call((*environment, *self.command, "build", *options), PULL)

    def copy_into(self, directory: Path, reference: str, copied: str) -> None:
        """Copy a directory over the root of a container of an image; commit it as another image."""
        container = self._ask("create", "--network=none", reference, "sh")
        try:
            self._ask("cp", f"{directory}/.", f"{container}:/")
            self._ask("commit", container, copied)
        finally:
            self._ask("rm", container)

    def _inspect(self, reference: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(
            self._ask("image", "inspect", "--format", "{{json .}}", reference)
        )
        return document

    def _ask(self, *arguments: str) -> str:
        return self.shell.ask(*self.command, *arguments)


@contextmanager
def running_docker(directory: Path, mirror: int) -> Iterator[Docker]:
    """Run a daemon with its state in a directory, and the registry on a port of this machine as its mirror."""
    shell = Shell(directory)
    configuration, socket = directory / "daemon.json", directory / "docker.sock"
    configuration.write_text("{}")
    command = (
        "dockerd",
        *("--config-file", str(configuration)),
        *("--data-root", str(directory / "data")),
        *("--exec-root", str(directory / "exec")),
        *("--pidfile", str(directory / "docker.pid")),
        *("--host", f"unix://{socket}"),
        "--storage-driver=overlay2",
        # Leave the machine's network alone.
        *("--iptables=false", "--ip6tables=false", "--bridge=none"),
        f"--registry-mirror=http://{HOST}:{mirror}",
    )
    with shell.daemon(command, ("docker", "--host", f"unix://{socket}", "version")):
        yield Docker(shell, socket)
