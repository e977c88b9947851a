"""How Nix confines builders: measured by a builder that reports what it can reach.

Nix's configuration does not say what a builder could reach. A daemon has its own and ignores a client's
options, ``sandbox-fallback`` may turn the sandbox off silently, ``sandbox = relaxed`` lets each package
choose, and a sandbox without build users keeps the user that started it. So the probe builds a derivation of
a few lines, whose builder reports what it finds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog

from nixery.errors import NixUnusable, SettingsError
from nixery.files import read_beginning
from nixery.nix.error_message import last_error

Sandbox = Literal["on", "optional", "off", "elsewhere", "unknown"]
User = Literal["root", "server", "own", "unknown"]

# Seconds: for a builder's report, which the start of the server waits for; and for Nix to end the builder
# after that.
_REPORT_TIMEOUT = 10.0
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

_log = structlog.get_logger("nixery.nix")


@dataclass(frozen=True, slots=True)
class Confinement:
    """How builders are confined.

    Attributes:
        sandbox: ``on`` for all builders; ``optional`` if a package may opt out; ``off``; ``elsewhere`` if
            they run on another machine; ``unknown``.
        user: the user that builders run as, seen from outside of a sandbox: ``root``, but not root of a user
            namespace; ``server``, the user of this process; ``own``, another user; ``unknown``. With an
            optional sandbox, the user of a builder that opted out.
        owns_store: whether this user owns the store paths that are the builder's inputs, and so can change
            them.
        reads_storage: whether the builder could read a file of the server that no other user may read.
        reason: why the confinement is unknown.
    """

    sandbox: Sandbox
    user: User
    owns_store: bool = False
    reads_storage: bool = False
    reason: str = ""

    @property
    def is_safe(self) -> bool:
        """Whether a hostile builder cannot take over the server or its machine."""
        if self.sandbox == "elsewhere":
            return True
        return self.sandbox == "on" and self.user in {"server", "own"} and not self.reads_storage

    @property
    def is_complete(self) -> bool:
        """Whether builds are also isolated from each other."""
        return self.is_safe and not self.owns_store

    @property
    def sentence(self) -> str:
        """Describe it in one sentence, without a period."""
        if self.sandbox == "unknown":
            return f"it is unknown what a builder could reach: {self.reason}"
        if self.sandbox == "elsewhere":
            return "builders run on another machine and can reach only the network of this one"
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
    "own": "as separate build users",
    "unknown": "as an unknown user",
}
_REACH_WITHOUT: Mapping[User, str] = {
    "root": "a builder can read and change everything on this machine, the server's storage and credentials included",
    "server": "a builder can read and change what the server can, its storage and credentials included",
    "own": "a builder can read the files that every user may read, and reach every service of this machine and its network",
    "unknown": "a builder can reach what this user can",
}


def require_sandbox(confinement: Confinement) -> None:
    """Enforce ``NIXERY_NIX_SANDBOX=on``.

    Raises:
        SettingsError: some builders run outside of the sandbox.
    """
    if confinement.sandbox in {"on", "elsewhere"}:
        return
    reason = confinement.reason or confinement.sentence
    raise SettingsError((f"NIXERY_NIX_SANDBOX is on, but the sandbox does not work here: {reason}",))


def require_confinement(confinement: Confinement, host: str) -> None:
    """Refuse to serve other machines if a builder could take over the server.

    If the probe failed, the server may start, since it can serve stored images; ``BuilderGate`` holds builds
    back.

    Args:
        confinement: of this server's builders.
        host: the operator's setting.

    Raises:
        SettingsError: a builder could take over the server.
    """
    if confinement.sandbox == "unknown" or confinement.is_safe:
        return
    problem = (
        f"NIXERY_HOST={host} opens the server to other machines, but {confinement.sentence}"
        " (turn on Nix's sandbox and give Nix build users, or use a Nix daemon that has both:"
        " docs/explanation/deployments.md; or accept it with NIXERY_NIX_SANDBOX=off)"
    )
    raise SettingsError((problem,))


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a listen address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


class BuilderGate:
    """Holds builds back until the probe has shown how builders are confined.

    A result of the start holds for the life of the process. If the probe failed at the start, because Nix was
    unusable, each build repeats it until one succeeds.

    Args:
        confinement: result of the probe at the start; ``None`` for a gate that is always open.
        probe: repeats it; blocks.
    """

    def __init__(self, confinement: Confinement | None, probe: Callable[[], Confinement]) -> None:
        self._open = confinement is None or confinement.is_safe
        self._probe = probe
        self._lock = asyncio.Lock()

    async def enter(self) -> None:
        """Let a build begin.

        Raises:
            NixUnusable: builders are not confined, or the probe failed.
        """
        async with self._lock:
            if self._open:
                return
            confinement = await asyncio.to_thread(self._probe)
            log_confinement(confinement)
            if not confinement.is_safe:
                raise NixUnusable("builders are not known to be confined; the server's log has the details")
            self._open = True


def log_confinement(confinement: Confinement) -> None:
    """Log what a builder could reach; at warning level, since quiet logs need it, too."""
    _log.warning("builders", sandbox=confinement.sandbox, user=confinement.user, reach=confinement.sentence)


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
        self._until = time.monotonic() + _REPORT_TIMEOUT
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
        """Wait for the report, with a timeout of a few seconds."""
        try:
            try:
                found = _parse(self._plain.output(self._until))
            except _NoReportError:
                found = _parse(self._start(*_WITH_A_SHELL).output(self._until))
            if found.sandbox != "on":
                return found
            try:
                escaped = _parse(self._escaping.output(self._until))
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
            # A separate process group, to end all its processes.
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
            raise _NoReportError(
                f"Nix did not finish the probe within {_REPORT_TIMEOUT:.0f} seconds"
            ) from None
        if self._process.returncode != 0:
            if "__noChroot" in stderr:
                raise _EscapeRefusedError
            raise _NoReportError(last_error(stderr) or "Nix printed no reason")
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


def _parse(report: str) -> Confinement:
    found = _REPORT.fullmatch(report)
    if found is None:
        raise _NoReportError("cannot parse the report of Nix's builder")
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
