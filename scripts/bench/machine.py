"""Where something was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from scripts.peers import docker_registry, nginx


def description() -> dict[str, str]:
    """Describe the machine and what ran on it."""
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        # What else the machine did in the last minute, our own set-up included.
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nixery": version("nixery"),
        "granian": version("granian"),
        "nginx": nginx.version(),
        "docker-registry": docker_registry.version(),
    }


def processor() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
