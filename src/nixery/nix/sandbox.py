"""What a builder could reach: found out by running one, not by reading Nix's configuration.

Nix's configuration does not answer the question. A daemon has one of its own and ignores what a client asks for, ``sandbox-fallback`` may
turn the sandbox off without a word, ``sandbox = relaxed`` leaves the choice to each package, and a sandbox without build users
keeps the user that it is entered with. So a derivation of a few lines is built, and its builder reports what it is.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog

from nixery.errors import NixUnusable, SettingsError

# Seconds: for the report of a builder, and for Nix to end it once that time is over. The server does not listen before.
_PATIENCE = 10.0
_GRACE = 4.0

# Bytes of a report; it takes a tenth of that.
_LONGEST_REPORT = 4096

# Only what a shell can do by itself: a sandbox may have nothing but /bin/sh. `-O` is no part of POSIX; dash, bash and busybox have it.
_SCRIPT = """\
uid= map= boot= owner=no reads=no
while read -r key _ effective _; do if [ "$key" = Uid: ]; then uid=$effective; fi; done < /proc/self/status
while read -r inside outside count; do map="$map $inside:$outside:$count"; done < /proc/self/uid_map
read -r boot < /proc/sys/kernel/random/boot_id
if [ -O "$0" ]; then owner=yes; fi
if [ -r "$file" ]; then reads=yes; fi
echo "pid=$$ uid=$uid owner=$owner reads=$reads boot=$boot map=$map" > "$out"
"""

# Each of them is new, or Nix would not build it now. `escaping` is what a package may say that wants no sandbox (Nix manual, sandbox).
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

# For a configuration that puts no shell into the sandbox. Not all machines have all of them.
_WITH_A_SHELL = ("--option", "extra-sandbox-paths", "/bin? /lib? /lib64? /usr?")

_REPORT = re.compile(
    r"pid=(?P<pid>\d+) uid=(?P<uid>\d+) owner=(?P<owner>yes|no) reads=(?P<reads>yes|no)"
    r" boot=(?P<boot>\S*) map=(?P<map>(?: \d+:\d+:\d+)+)\n"
)

_log = structlog.get_logger("nixery.nix")

Sandbox = Literal["on", "optional", "off", "elsewhere", "unknown"]
User = Literal["root", "server", "own", "unknown"]


@dataclass(frozen=True, slots=True)
class Confinement:
    """What builders are confined to.

    Attributes:
        sandbox: ``on`` for all of them; ``optional`` where a package may opt out; ``off``; ``elsewhere`` if they run on
            another machine; ``unknown``.
        user: that they run as, seen from outside of a sandbox: ``root``, unless that is a user namespace's own root; ``server``, which is
            this process's own; ``own``, which is neither; ``unknown``. Where the sandbox is optional, of a builder that opted out.
        owns_store: whether this user owns the store paths that the builder is given, and so can change them.
        reads_storage: whether it could read a file of the server's that no other user may read.
        reason: why it is unknown.
    """

    sandbox: Sandbox
    user: User
    owns_store: bool = False
    reads_storage: bool = False
    reason: str = ""

    @property
    def is_safe(self) -> bool:
        """Whether a hostile builder owns neither the server nor its machine."""
        if self.sandbox == "elsewhere":
            return True
        return self.sandbox == "on" and self.user != "root" and not self.reads_storage

    @property
    def is_complete(self) -> bool:
        """Whether it reaches nothing of other builds either."""
        return self.is_safe and not self.owns_store

    @property
    def sentence(self) -> str:
        """Say it in one sentence, without a period."""
        if self.sandbox == "unknown":
            return f"it is unknown what a builder could reach: {self.reason}"
        if self.sandbox == "elsewhere":
            return "builders run on another machine and reach nothing of this one but its network"
        if self.sandbox == "optional":
            return f"a package may turn Nix's sandbox off for its builders (sandbox = relaxed), which then run {_AS[self.user]}: {self._reach}"
        where = "in Nix's sandbox" if self.sandbox == "on" else "without a sandbox"
        return f"builders run {where}, {_AS[self.user]}: {self._reach}"

    @property
    def _reach(self) -> str:
        if self.sandbox != "on":
            return _REACH_WITHOUT[self.user]
        reach = ["a builder sees its inputs and, while it downloads, the network"]
        if self.owns_store:
            reach.append("it can change store paths that other images have in common with it")
        if self.user == "root":
            reach.append("it can change every file of this machine that sandbox-paths names")
        if self.reads_storage:
            reach.append("it can read the server's storage, which sandbox-paths names")
        return "; ".join(reach)


_AS: Mapping[User, str] = {
    "root": "as root",
    "server": "as the server's own user",
    "own": "as users of their own",
    "unknown": "as an unknown user",
}
_REACH_WITHOUT: Mapping[User, str] = {
    "root": "a builder can read and change everything on this machine, the server's storage and credentials included",
    "server": "a builder can read and change what the server can, its storage and credentials included",
    "own": "a builder can read the files that every user may read, and reach every service of this machine and its network",
    "unknown": "a builder can reach what this user can",
}


class BuilderProbe:
    """Builds the derivation, beside whatever else has to be done meanwhile. A context manager: nothing of it goes on after its end.

    Args:
        options: that builds are given.
        environment: that builds are given.
        directory: of the server's own, for a file that no builder should be able to read.

    Raises:
        OSError: the directory cannot be written to.
    """

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._options = options
        self._environment = environment
        self._until = time.monotonic() + _PATIENCE
        # Readable for its owner alone.
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
        """Wait for the report, some seconds at most."""
        found = self._confinement(self._plain)
        if found.sandbox == "unknown":
            found = self._confinement(self._start(*_WITH_A_SHELL))
        if found.sandbox != "on":
            return found
        escaped = self._confinement(self._escaping)
        if escaped.sandbox in {"off", "optional"}:
            return Confinement("optional", escaped.user, escaped.owns_store, escaped.reads_storage)
        return found

    def _confinement(self, build: _Build) -> Confinement:
        try:
            return _understood(build.output(self._until))
        except _NoReportError as error:
            return Confinement("unknown", "unknown", reason=str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for build in self._running:
            build.end()
        self._file.close()


class _NoReportError(Exception):
    """A builder did not report; the message is the reason."""


class _Build:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # A group of its own, so that all of it can be ended.
                start_new_session=True,
            )
        except OSError as error:
            self._problem = f"cannot run {command[0]}: {error.strerror}"

    def output(self, until: float) -> str:
        """Wait, and read what the builder wrote.

        Raises:
            _NoReportError: it wrote nothing, or not in time.
        """
        if self._process is None:
            raise _NoReportError(self._problem)
        try:
            stdout, stderr = self._process.communicate(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _NoReportError(f"Nix built nothing within {_PATIENCE:.0f} seconds") from None
        if self._process.returncode != 0:
            raise _NoReportError((stderr.strip().splitlines() or ["Nix said nothing"])[-1].strip())
        try:
            with Path(stdout.strip()).open("rb") as file:
                return file.read(_LONGEST_REPORT).decode(errors="replace")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _NoReportError(f"cannot read what Nix built: {reason}") from error

    def end(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
            self._signal(signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _understood(report: str) -> Confinement:
    found = _REPORT.fullmatch(report)
    if found is None:
        raise _NoReportError("the report of Nix's builder is not understood")
    ours = _read("/proc/self/uid_map").split()
    theirs = found["map"].replace(":", " ").split()
    uid = int(found["uid"])
    # In a namespace of its own a builder's user has another number than outside, and that one counts.
    user = uid if theirs == ours else _outside(uid, theirs)
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    if boot and found["boot"] and boot != found["boot"]:
        return Confinement("elsewhere", "own")
    return Confinement(
        # Its first process is the builder itself: nothing but Nix's sandbox does that.
        "on" if found["pid"] == "1" else "off",
        _named(user, ours),
        found["owner"] == "yes",
        found["reads"] == "yes",
    )


def _outside(uid: int, mapping: Sequence[str]) -> int:
    """The number that a user has in the namespace around a namespace (user_namespaces(7))."""
    numbers = [int(number) for number in mapping]
    for inside, outside, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def _named(user: int, mapping: Sequence[str]) -> User:
    # Root of a user namespace is somebody else outside, and can do no more than that one there.
    if user == 0 and _outside(0, mapping) == 0:
        return "root"
    return "server" if user == os.geteuid() else "own"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def require_sandbox(confinement: Confinement) -> None:
    """Hold builders to ``NIXERY_NIX_SANDBOX=on``.

    Raises:
        SettingsError: they are not all in the sandbox.
    """
    if confinement.sandbox in {"on", "elsewhere"}:
        return
    reason = confinement.reason or confinement.sentence
    raise SettingsError((f"NIXERY_NIX_SANDBOX is on, but the sandbox does not work here: {reason}",))


class BuilderGate:
    """Where builds pass before they begin: builders have to be confined, unless that was waived.

    What was found at the start is believed as long as the process lives. Only if nothing could be found out then, because Nix could not
    be used, the next build tries again.

    Args:
        confinement: that was found; ``None`` for a gate that is always open.
        probe: finds it out anew; blocks.
    """

    def __init__(self, confinement: Confinement | None, probe: Callable[[], Confinement]) -> None:
        self._open = confinement is None or confinement.is_safe
        self._probe = probe
        self._lock = asyncio.Lock()

    async def enter(self) -> None:
        """Let a build begin.

        Raises:
            NixUnusable: builders are not confined, or nobody knows.
        """
        if self._open:
            return
        async with self._lock:
            if self._open:
                return
            confinement = await asyncio.to_thread(self._probe)
            log_confinement(confinement)
            self._open = confinement.is_safe
        if not self._open:
            raise NixUnusable("builders are not known to be confined; the server's log has the details")


def log_confinement(confinement: Confinement) -> None:
    """Log what a builder could reach, as a warning unless that is nothing."""
    log = _log.info if confinement.is_complete else _log.warning
    log("builders", sandbox=confinement.sandbox, user=confinement.user, reach=confinement.sentence)
