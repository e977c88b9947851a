"""The resources that a server uses."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.nix import children_of

# Seconds until idle threads have ended and connections are closed.
_SETTLE = 45

# Tolerances of a server at rest: pools of descriptors and threads fill up with use.
_DESCRIPTORS = 16
_THREADS = 16

# Tolerances in bytes: memory that the allocator keeps, and the entries of an image in the bounded caches.
_ALLOCATOR = 32 * 1024 * 1024
_PER_IMAGE = 32 * 1024


@dataclass(frozen=True)
class Footprint:
    """The resources of a server: bytes of memory, and numbers of everything else."""

    memory: int
    descriptors: int
    threads: int
    processes: int
    temporary: int

    @classmethod
    def of(cls, process_id: int, storage: Path) -> Footprint:
        """Measure a server now."""
        directory = Path("/proc") / str(process_id)
        status = dict(
            line.split(":", 1) for line in (directory / "status").read_text().splitlines() if ":" in line
        )
        unfinished = [
            path
            for name in ("temporary", "gc-roots", "locks")
            for path in (storage / name).rglob("*")
            if path.is_file() or path.is_symlink()
        ]
        return cls(
            memory=int(status["VmRSS"].split()[0]) * 1024,
            descriptors=len(os.listdir(directory / "fd")),  # noqa: PTH208 -- faster
            threads=int(status["Threads"]),
            processes=len(children_of(process_id)),
            temporary=len(unfinished),
        )

    def grown(self, before: Footprint, images: int) -> list[str]:
        """Describe what has grown beyond the tolerances.

        Args:
            before: the state after warming up.
            images: number of images built since.
        """
        memory = _ALLOCATOR + images * _PER_IMAGE
        bounds = {
            "memory": (before.memory + memory, self.memory),
            "descriptors": (before.descriptors + _DESCRIPTORS, self.descriptors),
            "threads": (before.threads + _THREADS, self.threads),
            "processes": (before.processes, self.processes),
            "temporary files": (before.temporary, self.temporary),
        }
        return [f"{what}: {now} > {most}" for what, (most, now) in bounds.items() if now > most]

    def __str__(self) -> str:
        """Describe the resources in one line."""
        return (
            f"{self.memory / 1024**2:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.processes} processes, {self.temporary} temporary files"
        )


def at_rest(process_id: int, storage: Path, before: Footprint | None = None, images: int = 0) -> Footprint:
    """Measure an idle server once it has released its resources."""
    end = time.monotonic() + _SETTLE
    while True:
        time.sleep(1)
        found = Footprint.of(process_id, storage)
        calm = found.temporary == 0 and found.processes <= 1
        if (calm and (before is None or not found.grown(before, images))) or time.monotonic() > end:
            return found
