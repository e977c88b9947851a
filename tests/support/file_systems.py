"""Small file systems that fill up, as root only may mount: others do it in name spaces of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SECONDS = 30


@contextmanager
def small_file_system(directory: Path, size: int, inodes: int = 0) -> Iterator[Path]:
    """Mount a tmpfs of so many bytes, and of so many inodes if that is not 0, on a directory, which is made."""
    assert os.geteuid() == 0, "mounting takes root; run the tests with: unshare --map-root-user --mount"
    directory.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs", str(directory)],
        check=True,
        timeout=_SECONDS,
    )
    try:
        yield directory
    finally:
        # Lazily: whoever has files open there still lets go of it when he ends.
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=_SECONDS)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Have a file system be read-only for a while."""
    remount(directory, "ro")
    try:
        yield
    finally:
        remount(directory, "rw")


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True, timeout=_SECONDS)


def fill(directory: Path, leave: int = 0) -> Path:
    """Write a file that takes all there is, but for some bytes; delete it to have room again."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        status = os.statvfs(directory)
        for _ in range(0, max(0, status.f_bavail * status.f_frsize - leave), 4096):
            file.write(b"\0" * 4096)
    return ballast
