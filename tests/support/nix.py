"""The Nix that tests run: its configuration, a spy in front of it, and the processes it leaves."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE_SETS = Path(__file__).parent.parent / "packageset"

CONFIGURATION = """\
build-users-group =
substituters =
sandbox = false
experimental-features = nix-command flakes
"""

_PROGRAMS = ("nix", "nix-instantiate", "nix-store", "nix-build")

_DAEMON_SOCKET = Path("/nix/var/nix/daemon-socket/socket")


def nix_environment(directory: Path) -> dict[str, str]:
    """What Nix needs in its environment on this machine.

    A machine without any Nix configuration, where we are root, gets one: without build users, a sandbox or
    substituters.
    """
    if "NIX_CONF_DIR" in os.environ or os.geteuid() != 0 or _DAEMON_SOCKET.exists():
        return {}
    configuration = directory / "nix-configuration"
    configuration.mkdir(exist_ok=True)
    (configuration / "nix.conf").write_text(CONFIGURATION)
    return {"NIX_CONF_DIR": str(configuration)}


def salted_package_set(directory: Path, salt: str) -> Path:
    """Make a package set like ``tests/packageset`` whose salted packages nobody else has built or is building."""
    package_set = (
        directory / "salted-set"
    )  # without the salt: builders alone shall have it in their environment
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f'arguments: import {PACKAGE_SETS} (arguments // {{ salt = "{salt}"; }})\n'
    )
    return package_set


def processes_with_environment(*texts: str) -> dict[int, str]:
    """Command lines of all running processes with all of some texts in their environment, by process id.

    Builders have their derivation's attributes there, the salt among them.
    """
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            environment = (directory / "environ").read_bytes()
            if all(text.encode() in environment for text in texts):
                found[int(directory.name)] = _command_line(directory)
        except OSError:  # it ended, or is somebody else's
            continue
    return found


def children_of(process_id: int, *, direct: bool = False) -> dict[int, str]:
    """Command lines of all descendants of a process, or of those alone that it started itself, by process id."""
    parents = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                # The name of the program, in parentheses, may hold anything.
                after_name = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(directory.name)] = int(after_name[1])
    found: dict[int, str] = {}
    wanted = {process_id}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found.update({child: _command_line(Path("/proc") / str(child)) for child in wanted})
        if direct:
            break
    return found


def started_by(process_id: int) -> dict[int, str]:
    """Likewise, without the warden that each server has."""
    return {
        number: command for number, command in children_of(process_id).items() if "warden.py" not in command
    }


def _command_line(directory: Path) -> str:
    try:
        return (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def is_running(process_id: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = (
            (Path("/proc") / str(process_id) / "stat")
            .read_text(errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 15, every: float = 0.02) -> None:
    """Wait for something to become true, and look every so many seconds.

    Raises:
        AssertionError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} seconds in vain for: {what}"
        time.sleep(every)


def install_fake_nix(directory: Path, script: str) -> Mapping[str, str]:
    """Put a shell script in the place of all of Nix's programs; return the environment that has it so."""
    directory.mkdir(exist_ok=True)
    for name in _PROGRAMS:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@dataclass(frozen=True)
class NixSpy:
    """Programs of Nix's names, first on a ``PATH``, that write down what they are asked before they hand on."""

    directory: Path

    @classmethod
    def install(cls, directory: Path, watched: Sequence[Path] = ()) -> NixSpy:
        """Make the programs.

        Args:
            directory: a new one for them.
            watched: directories whose symlinks are written down with each call, and where they lead.
        """
        directory.mkdir()
        spy = cls(directory)
        spy._log.touch()
        for name in _PROGRAMS:
            program = shutil.which(name)
            assert program is not None, f"{name} is not installed"
            script = directory / name
            quoted = " ".join(f'"{path}"' for path in watched)
            look = (
                f"find {quoted} -type l -printf '%p\\t%l\\n' >> \"{spy._log}\" 2>/dev/null"
                if watched
                else ":"
            )
            script.write_text(
                f'#!/bin/sh\nprintf \'call: %s\\n\' "{name} $*" >> "{spy._log}"\n{look}\nexec {program} "$@"\n'
            )
            script.chmod(0o755)
        return spy

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def environment(self) -> Mapping[str, str]:
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}

    def forget(self) -> None:
        """Forget the calls so far."""
        self._log.write_text("")

    @property
    def calls(self) -> list[str]:
        """Command lines, in their order."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line.removeprefix("call: ") for line in lines if line.startswith("call: ")]

    def calls_of(self, *words: str) -> list[str]:
        """Command lines with all of some words."""
        return [call for call in self.calls if all(word in call.split() for word in words)]

    def seen_at(self, *words: str) -> list[dict[str, str]]:
        """The watched symlinks at each call with all of some words, by path."""
        calls: list[tuple[str, dict[str, str]]] = []
        for line in self._log.read_text(errors="replace").splitlines():
            path, _, target = line.partition("\t")
            if line.startswith("call: "):
                calls.append((line, {}))
            elif calls:
                calls[-1][1][path] = target
        return [seen for call, seen in calls if all(word in call.split() for word in words)]
