"""Ask the machine's own apt for its package indexes; no address of a mirror passes through here.

The machine's own architecture is read from the machine's own lists. Another one, or a machine whose lists are missing and
cannot be made for want of rights, gets a private configuration with its own lists, which uses the machine's sources and keys.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from locking.errors import LockError

ARCHITECTURES = {
    "x86_64-linux": "amd64",
    "aarch64-linux": "arm64",
    "i686-linux": "i386",
    "armv7l-linux": "armhf",
    "riscv64-linux": "riscv64",
    "powerpc64le-linux": "ppc64el",
    "s390x-linux": "s390x",
}
TRIPLETS = {
    "amd64": "x86-64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "i386": "i686-linux-gnu",
    "armhf": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "ppc64el": "powerpc64le-linux-gnu",
    "s390x": "s390x-linux-gnu",
}

_PRIVATE_CONFIGURATION = """\
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
Dir::State "{directory}/state";
Dir::State::lists "{directory}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{directory}/cache";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
"""


@dataclass(frozen=True, slots=True)
class Apt:
    """How to call apt for one architecture: where its lists are, and the options that make it use them."""

    architecture: str
    lists: Path
    options: tuple[str, ...]

    def has_lists(self) -> bool:
        """Whether there is any package index to read."""
        return any(self.lists.glob("*_Packages*"))

    def update(self) -> None:
        """Fetch the indexes again."""
        _run(["apt-get", *self.options, "-qq", "update"])
        if not self.has_lists():
            raise LockError(
                f"apt-get update brought no package index for {self.architecture}: does a source in /etc/apt offer it?"
            )

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Name, size and modification time of each index: equal as long as the answers of apt are."""
        found = ((path.name, path.stat()) for path in sorted(self.lists.glob("*_Packages*")))
        return [(name, status.st_size, status.st_mtime_ns) for name, status in found]

    def stanzas(self) -> Iterator[str]:
        """The index entry of every package's candidate, whatever is installed on this machine."""
        command = ["apt-cache", *self.options, "-o", "Dir::State::status=/dev/null", "dumpavail"]
        yield from _run(command).split("\n\n")


def native_architecture() -> str:
    """Debian's name of the architecture that the machine's own apt is set up for."""
    return _run(["dpkg", "--print-architecture"]).strip()


def apt_for(architecture: str, private: Path) -> Apt:
    """The machine's own apt if it serves `architecture`, else one with its state below `private`."""
    if shutil.which("apt-get") is None:
        raise LockError("there is no apt-get on this machine: the Debian package set needs a Debian with apt")
    if architecture == native_architecture():
        own = Apt(architecture, Path("/var/lib/apt/lists"), ())
        if own.has_lists() or os.geteuid() == 0:
            return own
    directory = private.absolute() / architecture
    for name in ("state", "lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    configuration = directory / "apt.conf"
    text = _PRIVATE_CONFIGURATION.format(architecture=architecture, directory=directory)
    if os.geteuid() == 0:
        # apt would drop to the user _apt, who may not be able to reach this directory.
        text += 'APT::Sandbox::User "root";\n'
    configuration.write_text(text)
    return Apt(architecture, directory / "lists", ("-c", str(configuration)))


def _run(command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise LockError(
            f"{command[0]} {command[-1]} failed: {reason[-1] if reason else 'it did not say why'}"
        )
    return done.stdout.decode(errors="replace")
