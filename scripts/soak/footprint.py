"""What a server takes of the machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.nix import children_of

# Seconds until what goes away by itself has gone: threads that send files end after some idle time, connections are closed.
_SETTLE = 45

# What may come and go in a server at rest: descriptors and threads of pools that fill up as they are used.
_DESCRIPTORS = 16
_THREADS = 16

# Bytes: what the allocator keeps although nobody uses it, and what an image in the (bounded) caches takes: manifests and their parts,
# tag, failures, names of the path that it was asked for with.
_ALLOCATOR = 32 * 1024 * 1024
_PER_IMAGE = 32 * 1024


@dataclass(frozen=True)
class Footprint:
    """Of a server and its storage."""

    memory: int
    descriptors: int
    threads: int
    processes: int
    temporary: int

    @classmethod
    def of(cls, process_id: int, storage: Path) -> Footprint:
        """Look at a server now."""
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
            descriptors=len(os.listdir(directory / "fd")),  # noqa: PTH208 -- it is quick
            threads=int(status["Threads"]),
            processes=len(children_of(process_id)),
            temporary=len(unfinished),
        )

    def grown(self, before: Footprint, images: int) -> list[str]:
        """Say what has grown by more than is explained.

        Args:
            before: after warming up.
            images: that were built since.
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
        """In words."""
        return (
            f"{self.memory / 1024**2:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.processes} processes, {self.temporary} temporary files"
        )


def at_rest(process_id: int, storage: Path, before: Footprint | None = None, images: int = 0) -> Footprint:
    """Look at a server that has nothing to do, when it has let go of what it needs no more."""
    end = time.monotonic() + _SETTLE
    while True:
        time.sleep(1)
        found = Footprint.of(process_id, storage)
        calm = found.temporary == 0 and found.processes <= 1
        if (calm and (before is None or not found.grown(before, images))) or time.monotonic() > end:
            return found
