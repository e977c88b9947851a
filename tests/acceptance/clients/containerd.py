"""ctr with containerd as a client."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tests.acceptance.clients.client import PULL, Outcome, Shell, host_of
from tests.support.server import HOST

_CONFIGURATION = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
# The plugins for Kubernetes, which are not needed; there are three since version 2.
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "{directory}/containerd.sock"
[debug]
address = "{directory}/debug.sock"
[ttrpc]
address = "{directory}/ttrpc.sock"
"""

_HOSTS = """\
server = "https://{host}"
[host."http://{mirror}"]
capabilities = ["pull", "resolve"]
"""


class Containerd:
    """ctr with a containerd of the tests."""

    name: ClassVar[str] = "ctr"
    mirrored: ClassVar[str | None] = "registry.invalid"
    # It sends HEAD, whose responses have no body, and stops at an error: it can show only the status.
    missing: ClassVar[str] = "not found"
    failure: ClassVar[str] = "422 Unprocessable"
    knows_zstd: ClassVar[bool] = True

    def __init__(self, shell: Shell, socket: Path, hosts: Path) -> None:
        self.shell = shell
        self.command = ("ctr", "--address", str(socket))
        self._hosts = hosts

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        lines = [line.split() for line in self._ask("version").splitlines()]
        client, server = (words[1] for words in lines if words and words[0] == "Version:")
        return {"ctr": client, "containerd": server}

    def pull(self, reference: str) -> Outcome:
        where = (
            ("--hosts-dir", str(self._hosts)) if host_of(reference) == self.mirrored else ("--plain-http",)
        )
        return self.shell.call(
            (*self.command, "images", "pull", *where, "--snapshotter", "overlayfs", reference), PULL
        )

    def digest(self, reference: str) -> str:
        (digest,) = [
            words[2]
            for line in self._ask("images", "list").splitlines()
            if (words := line.split())[0] == reference
        ]
        return digest

    def layers(self, reference: str) -> int:
        return len(json.loads(self._ask("content", "get", self.digest(reference)))["layers"])

    def run(self, reference: str, *command: str) -> str:
        name = f"nixery-acceptance-{uuid.uuid4().hex}"
        return self._ask("run", "--rm", "--snapshotter", "overlayfs", reference, name, *command)

    def _ask(self, *arguments: str) -> str:
        return self.shell.ask(*self.command, *arguments)


@contextmanager
def running_containerd(directory: Path, mirror: int) -> Iterator[Containerd]:
    """Run a containerd with its state in a directory; its hosts file names a registry on this machine as a mirror."""
    shell = Shell(directory)
    configuration, socket = directory / "config.toml", directory / "containerd.sock"
    configuration.write_text(_CONFIGURATION.format(directory=directory))
    host = Containerd.mirrored
    hosts = directory / "hosts"
    (hosts / f"{host}").mkdir(parents=True)
    (hosts / f"{host}" / "hosts.toml").write_text(_HOSTS.format(host=host, mirror=f"{HOST}:{mirror}"))
    command = ("containerd", "--config", str(configuration))
    with shell.daemon(command, ("ctr", "--address", str(socket), "version")):
        yield Containerd(shell, socket, hosts)
