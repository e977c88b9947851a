"""The Nix that tests run: its configuration, a spy in front of it, and its processes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """Return the environment variables that Nix needs on this machine.

    Root on a machine without any Nix configuration gets one: no build users, no sandbox, no substituters.
    """
    if "NIX_CONF_DIR" in os.environ or os.geteuid() != 0 or _DAEMON_SOCKET.exists():
        return {}
    configuration = directory / "nix-configuration"
    configuration.mkdir(exist_ok=True)
    (configuration / "nix.conf").write_text(CONFIGURATION)
    return {"NIX_CONF_DIR": str(configuration)}


def salted_package_set(directory: Path, salt: str) -> Path:
    """Write a package set like ``tests/packageset`` whose salted derivations are unique to this run."""
    # The salt must not be in the path: only builders shall have it in their environment.
    package_set = directory / "salted-set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f'arguments: import {PACKAGE_SETS} (arguments // {{ salt = "{salt}"; }})\n'
    )
    return package_set


def processes_with_environment(*texts: str) -> dict[int, str]:
    """Return the command lines, by process id, of processes whose environment holds all the texts.

    A builder's environment holds the attributes of its derivation, the salt among them.
    """
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            environment = (directory / "environ").read_bytes()
            if all(text.encode() in environment for text in texts):
                found[int(directory.name)] = _command_line(directory)
        except OSError:  # it ended, or belongs to another user
            continue
    return found


def children_of(process_id: int, *, direct: bool = False) -> dict[int, str]:
    """Return the command lines of a process's descendants, or of its children alone, by process id."""
    parents = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                # The program's name, in parentheses, may contain any character.
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
    """Return the descendants of a server without its warden."""
    return {
        number: command for number, command in children_of(process_id).items() if "warden.py" not in command
    }


def _command_line(directory: Path) -> str:
    try:
        return (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def is_running(process_id: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
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


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60, every: float = 0.02) -> None:
    """Poll a condition until it holds.

    Args:
        condition: what to wait for.
        what: names the condition in the failure.
        seconds: time limit, which only bounds a hang; no test measures speed with it.
        every: seconds between polls.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out after {seconds} seconds waiting until {what}"
        time.sleep(every)


# Has a server ask Nix's programs instead of Nix's database: they stand in for a store that it cannot read.
WITHOUT_DATABASE = {"NIX_STORE_DIR": "/nix/store"}


def install_fake_nix(directory: Path, script: str) -> Mapping[str, str]:
    """Write a shell script under the names of Nix's programs; return the environment that puts it on ``PATH``."""
    directory.mkdir(exist_ok=True)
    for name in _PROGRAMS:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}", **WITHOUT_DATABASE}


@dataclass(frozen=True)
class NixSpy:
    """Wrappers of Nix's programs, first on ``PATH``, that record each call before they run the program.

    A call can be held (`holding`), so that a test acts while a build is certain to be in progress.
    """

    directory: Path

    @classmethod
    def install(cls, directory: Path, watched: Sequence[Path] = ()) -> NixSpy:
        """Write the wrappers.

        Args:
            directory: created for the wrappers.
            watched: directories whose symlinks and their targets are recorded with each call.
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
                f"""#!/bin/sh
printf 'call: %s\\n' "{name} $*" >> "{spy._log}"
{look}
while held=$(cat "{spy._held}" 2>/dev/null); do
    case "{name} $*" in $held) sleep 0.02 ;; *) break ;; esac
done
exec {program} "$@"
"""
            )
            script.chmod(0o755)
        return spy

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    @property
    def _held(self) -> Path:
        return self.directory / "held"

    def environment(self, *, database: bool = False) -> Mapping[str, str]:
        """Return the environment of a server whose calls are recorded.

        Args:
            database: whether the server may also read Nix's database, and start no process for what that answers.
        """
        return {
            "PATH": f"{self.directory}:{os.environ['PATH']}",
            **({} if database else WITHOUT_DATABASE),
        }

    @contextmanager
    def holding(self, *words: str) -> Iterator[None]:
        """Hold each call whose command line contains the words, in their order, until the context ends."""
        self._held.write_text("*".join(("", *words, "")))
        try:
            yield
        finally:
            self._held.unlink()

    def forget(self) -> None:
        """Forget the calls so far."""
        self._log.write_text("")

    @property
    def calls(self) -> list[str]:
        """Command lines in the order of the calls."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line.removeprefix("call: ") for line in lines if line.startswith("call: ")]

    def calls_of(self, *words: str) -> list[str]:
        """Return the command lines that contain all the words."""
        return [call for call in self.calls if all(word in call.split() for word in words)]

    def seen_at(self, *words: str) -> list[dict[str, str]]:
        """Return the watched symlinks, by path, at each call that contains all the words."""
        calls: list[tuple[str, dict[str, str]]] = []
        for line in self._log.read_text(errors="replace").splitlines():
            path, _, target = line.partition("\t")
            if line.startswith("call: "):
                calls.append((line, {}))
            elif calls:
                calls[-1][1][path] = target
        return [seen for call, seen in calls if all(word in call.split() for word in words)]
