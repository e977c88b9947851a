"""Digests of images: ``python -m scripts.equality.worker <name>...``; prints them by name as JSON.

The environment has the settings of the server. The process may have its own Nix store.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence

import structlog

from nixery.app import assemble
from nixery.image.name import requests_for
from nixery.settings import Settings
from nixery.startup import prepare


async def _digests(names: Sequence[str]) -> dict[str, str]:
    settings = Settings.from_environment(os.environ)
    resources = prepare(settings)
    digests = {}
    async with assemble(settings, resources) as components:
        await components.ahead
        for name in names:
            found = await components.images.get(requests_for(name, resources.platforms), "latest")
            digests[name] = str(found.image.digests[0])
    return digests


def main() -> None:
    """Build the images and print their digests."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    json.dump(asyncio.run(_digests(sys.argv[1:])), sys.stdout)


if __name__ == "__main__":
    main()
