"""File systems that tests mount: small ones that fill up, and those that container runtimes leave behind.

Mounting takes root; other users run such tests in their own namespace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds.
_TIMEOUT = 30


@contextmanager
def small_file_system(directory: Path, size: int, inodes: int = 0) -> Iterator[Path]:
    """Mount a tmpfs on a new directory.

    Args:
        directory: created for it.
        size: bytes.
        inodes: 0 for no limit.
    """
    assert os.geteuid() == 0, "mounting takes root; run the tests with: unshare --map-root-user --mount"
    directory.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs", str(directory)],
        check=True,
        timeout=_TIMEOUT,
    )
    try:
        yield directory
    finally:
        # Lazily: processes with open files release it when they end.
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=_TIMEOUT)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a file system read-only until the context ends."""
    remount(directory, "ro")
    try:
        yield
    finally:
        remount(directory, "rw")


def remount(directory: Path, options: str) -> None:
    """Change the mount options of a file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True, timeout=_TIMEOUT)


def fill(directory: Path, leave: int = 0) -> Path:
    """Write a file that fills the file system.

    Args:
        directory: its mount point.
        leave: bytes to leave free.

    Returns:
        The file; delete it to have room again.
    """
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        status = os.statvfs(directory)
        for _ in range(0, max(0, status.f_bavail * status.f_frsize - leave), 4096):
            file.write(b"\0" * 4096)
    return ballast


def mounts_below(directory: Path) -> list[Path]:
    """Return all mount points in a directory, the innermost first (proc(5), mountinfo)."""
    points = [
        Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [point for point in reversed(points) if point.is_relative_to(directory)]


def _file_system(directory: Path) -> str:
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_TIMEOUT
    ).stdout.strip()


@contextmanager
def short_lived_directory(prefix: str) -> Iterator[Path]:
    """Make a directory for a container runtime, and delete it in the end with all that is mounted in it.

    It is outside pytest's directories, which are kept, and has a short path: a socket's may have at most 107
    bytes.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        if _file_system(directory) == "overlay":
            # Inside a container: an overlay cannot lie on top of another one.
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True, timeout=_TIMEOUT)
        yield directory
    finally:
        for point in mounts_below(directory):
            subprocess.run(["umount", str(point)], check=False, timeout=_TIMEOUT)
        left = mounts_below(directory)
        # Never delete from a mounted file system: its files may belong to others.
        if not left:
            shutil.rmtree(directory)
        assert not left, f"still mounted: {left}"
