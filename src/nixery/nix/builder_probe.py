"""Run a builder that reports how it is confined.

Nix's configuration does not say what a builder could reach. A daemon has its own and ignores a client's
options, ``sandbox-fallback`` may turn the sandbox off silently, ``sandbox = relaxed`` lets each package
choose, and a sandbox without build users keeps the user that started it. So the probe builds a derivation of
a few lines, whose builder reports what it finds.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from nixery.beneath import read_beginning
from nixery.nix.sandbox import Confinement, Sandbox, User

# Seconds: for a builder's report, and for Nix to end the builder after that. The server does not listen
# before.
_PATIENCE = 10.0
_GRACE = 4.0

# Bytes of a report; a real one has a tenth of that.
_LONGEST_REPORT = 4096

# Only shell built-ins: a sandbox may have nothing but /bin/sh. `-O` is not in POSIX; dash, bash and busybox
# have it.
_SCRIPT = """\
uid= map= boot= owner=no reads=no
while read -r key _ effective _; do if [ "$key" = Uid: ]; then uid=$effective; fi; done < /proc/self/status
while read -r inside outside count; do map="$map $inside:$outside:$count"; done < /proc/self/uid_map
read -r boot < /proc/sys/kernel/random/boot_id
if [ -O "$0" ]; then owner=yes; fi
if [ -r "$file" ]; then reads=yes; fi
echo "pid=$$ uid=$uid owner=$owner reads=$reads boot=$boot map=$map" > "$out"
"""

# Each derivation is unique, or Nix would reuse an old result. `escaping` has the attribute by which a package
# opts out of the sandbox (Nix manual, sandbox).
_EXPRESSION = """\
{ salt, file, script, escaping }: derivation ({
  name = "nixery-probe";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ (builtins.toFile "nixery-probe.sh" script) ];
  preferLocalBuild = true;
  allowSubstitutes = false;
  inherit salt file;
} // (if escaping == "yes" then { __noChroot = true; } else { }))
"""

# For a configuration that puts no shell into the sandbox. Not all machines have all of these.
_WITH_A_SHELL = ("--option", "extra-sandbox-paths", "/bin? /lib? /lib64? /usr?")

_REPORT = re.compile(
    r"pid=(?P<pid>\d+) uid=(?P<uid>\d+) owner=(?P<owner>yes|no) reads=(?P<reads>yes|no)"
    r" boot=(?P<boot>\S+) map=(?P<map>(?: \d+:\d+:\d+)+)\n"
)


class BuilderProbe:
    """Builds the derivation in the background. A context manager; leaving it ends all processes.

    Args:
        options: of builds.
        environment: of builds.
        directory: private to the server, for a file that no builder should be able to read.

    Raises:
        OSError: the directory cannot be written to.
    """

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._options = options
        self._environment = environment
        self._until = time.monotonic() + _PATIENCE
        # Mode 0600.
        self._file = tempfile.NamedTemporaryFile(dir=directory, prefix="nixery-probe-")  # noqa: SIM115 -- see __exit__
        self._running: list[_Build] = []
        self._plain = self._start()
        self._escaping = self._start(escaping=True)

    def _start(self, *more: str, escaping: bool = False) -> _Build:
        arguments = {
            "salt": secrets.token_hex(16),
            "file": self._file.name,
            "script": _SCRIPT,
            "escaping": "yes" if escaping else "no",
        }
        given = [word for name, value in arguments.items() for word in ("--argstr", name, value)]
        command = ["nix-build", "--no-out-link", *self._options, *more, *given, "--expr", _EXPRESSION]
        build = _Build(command, self._environment)
        self._running.append(build)
        return build

    def confinement(self) -> Confinement:
        """Wait for the report, with a timeout of some seconds."""
        try:
            try:
                found = _understood(self._plain.output(self._until))
            except _NoReportError:
                found = _understood(self._start(*_WITH_A_SHELL).output(self._until))
            if found.sandbox != "on":
                return found
            try:
                escaped = _understood(self._escaping.output(self._until))
            except _EscapeRefusedError:
                return found
        except (_NoReportError, OSError) as error:
            return Confinement("unknown", "unknown", reason=str(error))
        return replace(escaped, sandbox="optional") if escaped.sandbox == "off" else found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for build in self._running:
            build.end()
        self._file.close()


class _NoReportError(Exception):
    """A builder did not report; the message says why."""


class _EscapeRefusedError(_NoReportError):
    """Nix refuses to build a derivation that opts out of the sandbox."""


class _Build:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[str] | None = None
        try:
            # A process group of its own, to end all its processes.
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._problem = f"cannot run {command[0]}: {error.strerror}"

    def output(self, until: float) -> str:
        """Wait, and read the builder's report.

        Raises:
            _NoReportError: it wrote nothing, or timed out.
        """
        if self._process is None:
            raise _NoReportError(self._problem)
        try:
            stdout, stderr = self._process.communicate(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _NoReportError(f"Nix built nothing within {_PATIENCE:.0f} seconds") from None
        if self._process.returncode != 0:
            if "__noChroot" in stderr:
                raise _EscapeRefusedError
            raise _NoReportError((stderr.strip().splitlines() or ["Nix said nothing"])[-1].strip())
        try:
            return read_beginning(stdout.strip(), _LONGEST_REPORT).decode(errors="replace")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _NoReportError(f"cannot read what Nix built: {reason}") from error

    def end(self) -> None:
        if self._process is None:
            return
        with self._process as process:  # waits for it
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _understood(report: str) -> Confinement:
    found = _REPORT.fullmatch(report)
    if found is None:
        raise _NoReportError("the report of Nix's builder is not understood")
    if found["boot"] != Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip():
        return Confinement("elsewhere", "own")
    ours = [int(number) for number in Path("/proc/self/uid_map").read_text(encoding="utf-8").split()]
    theirs = [int(number) for number in found["map"].replace(":", " ").split()]
    # In a user namespace, a builder's user has another id than outside, and the outer id counts.
    uid = int(found["uid"]) if theirs == ours else _outside(int(found["uid"]), theirs)
    user: User = "server" if uid == os.geteuid() else "own"
    # Root of a user namespace is another user outside, and has no more rights than that user.
    if uid == 0 and _outside(0, ours) == 0:
        user = "root"
    # Only in Nix's sandbox is the builder the first process of its PID namespace.
    sandbox: Sandbox = "on" if found["pid"] == "1" else "off"
    return Confinement(sandbox, user, found["owner"] == "yes", found["reads"] == "yes")


def _outside(uid: int, mapping: Sequence[int]) -> int:
    """The id of a user in the parent namespace (user_namespaces(7))."""
    for inside, outside, count in zip(mapping[::3], mapping[1::3], mapping[2::3], strict=True):
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid
