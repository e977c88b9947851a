"""One request in its own process: ``python -m scripts.bench_remote.worker <name>``; prints its parts as JSON.

The environment has the settings of the server. The process may have its own Nix store.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sys
import time

import structlog

from nixery.app import assemble
from nixery.builds.events import Build, BuildEvent, Evaluated, Stored
from nixery.image.name import requests_for
from nixery.settings import Settings
from nixery.startup import prepare


class _Clock:
    """A ``BuildObserver`` that times what comes after the evaluation."""

    def __init__(self) -> None:
        self.evaluated = self.stored = 0.0

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        del build
        match event:
            case Evaluated():
                self.evaluated = time.perf_counter()
            case Stored():
                self.stored = time.perf_counter()
            case _:
                pass


async def _measure(name: str) -> dict[str, float | str]:
    settings = Settings.from_environment(os.environ)
    resources = prepare(settings)
    clock = _Clock()
    async with assemble(settings, resources, observer=clock) as components:
        await components.ahead
        found = await components.images.get(requests_for(name, resources.platforms), "latest")
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": clock.stored - clock.evaluated,
        "memory": usage[0] * 1024,
        "children": usage[1] * 1024,
        "digest": str(found.image.digests[0]),
    }


def main() -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    json.dump(asyncio.run(_measure(sys.argv[1])), sys.stdout)


if __name__ == "__main__":
    main()
