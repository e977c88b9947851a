"""What container runtimes leave mounted."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SECONDS = 30


def mounts_below(directory: Path) -> list[Path]:
    """Everything that is mounted in a directory, the innermost first (proc(5), mountinfo; octal escapes undone)."""
    points = [
        Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [point for point in reversed(points) if point.is_relative_to(directory)]


def _file_system(directory: Path) -> str:
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_SECONDS
    ).stdout.strip()


@contextmanager
def short_lived_directory(prefix: str) -> Iterator[Path]:
    """A directory for storage of container runtimes: at the end it is gone, with all that is mounted in it.

    It is not below pytest's: those are kept, and names of sockets in it have to stay below 108 bytes.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        if _file_system(directory) == "overlay":
            # As in a container: the overlays of container runtimes do not lie on top of another one.
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True, timeout=_SECONDS)
        yield directory
    finally:
        for point in mounts_below(directory):
            subprocess.run(["umount", str(point)], check=False, timeout=_SECONDS)
        left = mounts_below(directory)
        # Never into something that is mounted: it may be the file system of somebody else.
        if not left:
            shutil.rmtree(directory)
        assert not left, f"still mounted: {left}"
