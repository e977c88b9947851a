"""The installation of Nix on this machine: known flaws of its version, its platform, and free space in its store.

Programs report only their version, and distributions fix flaws without changing it. So a match with an
advisory is a reason to check, not to refuse: docs/explanation/deployments.md lists the safe versions, and
explains which flaws this list omits.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import NixStoreFull, NixUnusable
from nixery.image.platform import AMD64, ARM64, SUPPORTED, Platform

# Seconds for a command that only reports something.
_TIMEOUT = 5

# Free bytes and files of the store below which builds are refused.
_LEAST_BYTES = 16 * 1024 * 1024
_LEAST_FILES = 100

_MACHINES = {"x86_64": AMD64, "amd64": AMD64, "aarch64": ARM64, "arm64": ARM64}

Version = tuple[int, int, int]

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def require_usable_nix(store: Path = Path(STORE_DIRECTORY)) -> None:
    """Check that Nix is installed and that its store has free space.

    Raises:
        NixUnusable: Nix is not on ``PATH``, or its store is inaccessible.
        NixStoreFull: the store has almost no free space.
    """
    if not is_installed():
        raise NixUnusable("nix-store is not on PATH")
    try:
        full = is_out_of_space(store)
    except OSError as error:
        raise NixUnusable(f"cannot access the Nix store: {error.strerror}") from error
    if full:
        raise NixStoreFull


def is_installed() -> bool:
    """Whether Nix's programs are on ``PATH``."""
    return shutil.which("nix-store") is not None


def is_out_of_space(store: Path = Path(STORE_DIRECTORY)) -> bool:
    """Whether the Nix store has almost no free space.

    Raises:
        OSError: it is inaccessible.
    """
    status = os.statvfs(store)
    # Some file systems have no fixed number of files, and report 0.
    out_of_files = status.f_files and status.f_favail < _LEAST_FILES
    return bool(status.f_bavail * status.f_frsize < _LEAST_BYTES or out_of_files)


def owns_store(store: Path = Path(STORE_DIRECTORY)) -> bool:
    """Whether Nix writes to the store as this user; then no daemon ignores the server's options."""
    try:
        return store.stat().st_uid == os.geteuid()
    except OSError:
        return False


def some_paths(store: Path, most: int) -> Sequence[StorePath]:
    """Return store paths of this machine, from everywhere in its store; none without a store."""
    found: list[StorePath] = []
    with suppress(OSError):
        for name in sorted(path.name for path in store.iterdir()):
            # Their derivations are in no cache.
            if not name.endswith(".drv"):
                with suppress(ValueError):
                    found.append(StorePath.parse(f"{STORE_DIRECTORY}/{name}"))
    return found[:: max(1, len(found) // most)][:most]


def native_platform(environment: Mapping[str, str]) -> Platform:
    """Ask Nix, whose configuration decides; without a valid answer, use the machine's own platform.

    Blocks for some hundredths of a second.

    Args:
        environment: of the command.
    """
    command = ("nix-instantiate", "--eval", "--expr", "builtins.currentSystem")
    answer = (_output(command, environment) or "").strip().strip('"')
    found = next((known for known in SUPPORTED if known.nix_system == answer), None)
    return found or _MACHINES.get(platform.machine(), AMD64)


@dataclass(frozen=True, slots=True)
class Advisory:
    """A published flaw.

    Attributes:
        name: identifies it.
        meaning: what it lets an attacker do, as a clause.
        fixed: the first fixed release of each release line. A line that is not listed was never fixed, unless
            it is newer than all of them.
        since: the first version that has it.
    """

    name: str
    meaning: str
    fixed: Sequence[Version]
    since: Version = (0, 0, 0)

    def concerns(self, version: Version) -> bool:
        """Whether a release has the flaw, judged by its version."""
        if version < self.since or version >= max(self.fixed):
            return False
        return not any(version[:2] == fixed[:2] and version >= fixed for fixed in self.fixed)


# Keyed by the name that a program reports. From the advisories of the projects, and the CVE records that
# quote them.
ADVISORIES: Mapping[str, Sequence[Advisory]] = {
    "Nix": (
        Advisory(
            "CVE-2024-27297",
            "two cooperating builders can change a download after Nix has verified its hash",
            ((2, 3, 18), (2, 18, 2), (2, 19, 4), (2, 20, 5)),
        ),
        Advisory(
            "CVE-2024-45593",
            "an archive from a binary cache can write files anywhere, as the user that unpacks it",
            ((2, 24, 6),),
            (2, 24, 0),
        ),
        Advisory(
            "CVE-2025-46415, CVE-2025-46416, CVE-2025-52991, CVE-2025-52992, CVE-2025-52993",
            "cooperating builders can become a build user, delete files as root, and change what failed builds left",
            ((2, 24, 15), (2, 26, 4), (2, 28, 4), (2, 29, 1)),
        ),
        Advisory(
            "CVE-2026-39860",
            "a sandboxed builder of a download can overwrite any file, as the user that runs Nix or its daemon",
            ((2, 28, 6), (2, 29, 3), (2, 30, 4), (2, 31, 4), (2, 32, 7), (2, 33, 4), (2, 34, 5)),
            # A flaw of the fix for the first one here, and so present in its fixed releases.
            (2, 18, 2),
        ),
        Advisory(
            "CVE-2026-44028",
            "a deeply nested archive can overwrite memory of Nix or its daemon",
            ((2, 28, 7), (2, 29, 4), (2, 30, 5), (2, 31, 5), (2, 32, 8), (2, 33, 6), (2, 34, 7)),
            (2, 24, 4),
        ),
    ),
    "Lix": (
        Advisory(
            "CVE-2025-46415, CVE-2025-46416, CVE-2025-52991, CVE-2025-52992, CVE-2025-52993",
            "cooperating builders can become a build user, delete files as root, and change what failed builds left",
            ((2, 91, 2), (2, 92, 2), (2, 93, 1)),
        ),
        Advisory(
            "CVE-2026-44028",
            "a deeply nested archive can overwrite memory of Lix or its daemon",
            ((2, 93, 4), (2, 94, 2), (2, 95, 2)),
            (2, 93, 0),
        ),
    ),
    "git": (
        Advisory(
            "CVE-2022-39253",
            "a repository on the same file system can have files outside of it copied",
            (
                (2, 30, 6),
                (2, 31, 5),
                (2, 32, 4),
                (2, 33, 5),
                (2, 34, 5),
                (2, 35, 5),
                (2, 36, 3),
                (2, 37, 4),
                (2, 38, 1),
            ),
        ),
        Advisory(
            "CVE-2023-22490, CVE-2023-23946",
            "a repository can have files outside of it copied, and a patch can write files outside of it",
            (
                *((2, 30, 8), (2, 31, 7), (2, 32, 6), (2, 33, 7), (2, 34, 7)),
                *((2, 35, 7), (2, 36, 5), (2, 37, 6), (2, 38, 4), (2, 39, 2)),
            ),
        ),
        Advisory(
            "CVE-2024-32002, CVE-2024-32004, CVE-2024-32021, CVE-2024-32465",
            "a repository can run programs while it is cloned",
            ((2, 39, 4), (2, 40, 2), (2, 41, 1), (2, 42, 2), (2, 43, 4), (2, 44, 1), (2, 45, 1)),
        ),
        Advisory(
            "CVE-2025-48384",
            "a repository with submodules can run programs while it is cloned",
            ((2, 43, 7), (2, 44, 4), (2, 45, 4), (2, 46, 4), (2, 47, 3), (2, 48, 2), (2, 49, 1), (2, 50, 1)),
            # Older versions have it as well. 2.39.5 is Debian 12's, which is fixed under the same number.
            (2, 40, 0),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Release:
    """A program and the version that it reports.

    Attributes:
        program: a key of ``ADVISORIES``.
        version: as text, without the suffixes of distributions.
        advisories: those that apply to it.
    """

    program: str
    version: str
    advisories: Sequence[Advisory]

    @classmethod
    def parse(cls, text: str) -> Release | None:
        """Parse version output, for example ``nix-store (Nix) 2.8.0``; ``None`` if it has no version."""
        found = _VERSION.search(text)
        if found is None:
            return None
        name = "git" if text.startswith("git ") else "Lix" if "(Lix" in text else "Nix"
        version = (int(found[1]), int(found[2]), int(found[3] or 0))
        return cls(name, found[0], tuple(flaw for flaw in ADVISORIES[name] if flaw.concerns(version)))

    @property
    def warning(self) -> str:
        """Describe its known flaws in one sentence; empty if none is known."""
        if not self.advisories:
            return ""
        flaws = "; ".join(f"{flaw.name} ({flaw.meaning})" for flaw in self.advisories)
        return f"{self.program} {self.version} has known flaws unless its distribution fixed them: {flaws}"


def release(program: str, environment: Mapping[str, str]) -> Release | None:
    """Ask ``git`` or a program of Nix for its version; ``None`` without one. Blocks for some 10 ms."""
    answer = _output((program, "--version"), environment)
    return None if answer is None else Release.parse(answer)


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            text=True,
            errors="replace",
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
