"""How long grouping takes."""

from __future__ import annotations

import random
import time

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity

_PATHS = 10_000
_REFERENCES = 6
_BUDGET = 93
_LARGEST = 100_000_000


def seconds_for_a_large_closure() -> float:
    """Group 10,000 store paths with 60,000 references; the best of three."""
    draw = random.Random(1)  # noqa: S311
    paths = [StorePath(f"{number:032d}-package-{number}") for number in range(_PATHS)]
    infos = [
        PathInfo(
            path,
            "",
            draw.randrange(_LARGEST),
            tuple(sorted(draw.sample(paths[:number], min(_REFERENCES, number)))),
        )
        for number, path in enumerate(paths)
    ]
    closure = Closure(infos)
    return min(_seconds(closure) for _ in range(3))


def _seconds(closure: Closure) -> float:
    started = time.perf_counter()
    group_into_layers(closure, Popularity(), _BUDGET)
    return time.perf_counter() - started
