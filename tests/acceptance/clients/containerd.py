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
{plugins}
[grpc]
address = "{directory}/containerd.sock"
[debug]
address = "{directory}/debug.sock"
[ttrpc]
address = "{directory}/ttrpc.sock"
"""

# The plugins for Kubernetes; there are three since version 2.
_WITHOUT_CRI = """\
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
"""

# Without profiles of AppArmor, which the tests' machine may not let it load. Later versions read this form, too.
_CRI = """
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/hosts"
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
        self._socket = socket

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

    def cri_command(self, crictl: Path) -> tuple[str, ...]:
        """Return the beginning of the commands of ``crictl``."""
        configuration = self.shell.directory / "crictl.yaml"
        endpoint = f"unix://{self._socket}"
        configuration.write_text(
            f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: {PULL}\n"
        )
        return (str(crictl), "--config", str(configuration))

    def write_hosts(self, host: str, text: str) -> tuple[str, ...]:
        """Write ``hosts.toml`` for a host; return the options for ``ctr images pull`` that have it read."""
        directory = self._hosts / host
        directory.mkdir(exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return ("--hosts-dir", str(self._hosts))

    def _ask(self, *arguments: str) -> str:
        return self.shell.ask(*self.command, *arguments)


@contextmanager
def running_containerd(directory: Path, mirror: int, *, for_kubernetes: bool = False) -> Iterator[Containerd]:
    """Run a containerd with its state in a directory; its hosts file names a registry on this machine as a mirror.

    With ``for_kubernetes``, it has the Container Runtime Interface.
    """
    shell = Shell(directory)
    configuration, socket = directory / "config.toml", directory / "containerd.sock"
    text = _CONFIGURATION.format(directory=directory, plugins="" if for_kubernetes else _WITHOUT_CRI)
    configuration.write_text(text + (_CRI.format(directory=directory) if for_kubernetes else ""))
    host = Containerd.mirrored
    hosts = directory / "hosts"
    (hosts / f"{host}").mkdir(parents=True)
    (hosts / f"{host}" / "hosts.toml").write_text(_HOSTS.format(host=host, mirror=f"{HOST}:{mirror}"))
    command = ("containerd", "--config", str(configuration))
    with shell.daemon(command, ("ctr", "--address", str(socket), "version")):
        yield Containerd(shell, socket, hosts)
