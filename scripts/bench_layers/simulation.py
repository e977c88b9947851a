"""The costs of a rule: bytes that a fleet of nodes pulls over rounds of updates, and the time to group a closure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from scripts.bench_layers.fleet import Fleet

# The closure whose grouping is timed; sizes in bytes.
_PATHS = 10_000
_REFERENCES = 6
_BUDGET = 93
_LARGEST = 100_000_000

Groups = list[tuple[StorePath, ...]]

# Takes the closure of an image and the requested paths; returns a function that groups the closure into a
# number of layers.
Rule = Callable[[Closure, Sequence[StorePath]], Callable[[int], Groups]]


@dataclass(frozen=True, slots=True)
class Score:
    """Bytes, uncompressed.

    Attributes:
        pulled: by all nodes.
        stored: by the registry, which deletes nothing.
    """

    pulled: int
    stored: int


class _Layers:
    """Numbers and sizes of layers, which are identified by their paths."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[StorePath, ...], int] = {}
        self.sizes: list[int] = []

    def number(self, paths: Iterable[StorePath], closure: Closure) -> int:
        key = tuple(sorted(paths, key=lambda path: path.base_name))
        if key not in self._numbers:
            self._numbers[key] = len(self.sizes)
            self.sizes.append(sum(closure[path].nar_size for path in key))
        return self._numbers[key]


class _Registry:
    """The stored and the pulled layers for one budget."""

    def __init__(self, budget: int, nodes: int) -> None:
        self.budget = budget
        self.layers = _Layers()
        self.pulled = 0
        self._held: list[set[int]] = [set() for _ in range(nodes)]
        self._images: dict[int, list[int]] = {}

    def publish(self, image: int, groups: Groups, closure: Closure) -> None:
        self._images[image] = [self.layers.number(paths, closure) for paths in groups]

    def pull(self, node: int, image: int) -> None:
        new = set(self._images[image]) - self._held[node]
        self._held[node] |= new
        self.pulled += sum(self.layers.sizes[layer] for layer in new)


def simulate(
    rule: Rule, budgets: Sequence[int], fleet: Fleet, states: Sequence[Sequence[PathInfo]]
) -> dict[int, Score]:
    """Simulate the pulls of a fleet.

    Args:
        rule: groups paths into layers.
        budgets: maximum numbers of layers, including the image's own, which is not simulated.
        fleet: nodes and images.
        states: the store path of each derivation, at the beginning and after each round of updates.
    """
    registries = [_Registry(budget, len(fleet.nodes)) for budget in budgets]
    known: dict[int, list[StorePath]] = {}
    for infos in states:
        for node, images in enumerate(fleet.nodes):
            for number in images:
                image = fleet.images[number]
                requested = [infos[derivation].path for derivation in image.requested]
                # A path's hash covers its dependencies: if no requested path changed, no path of the image
                # did.
                if known.get(number) != requested:
                    known[number] = requested
                    closure = Closure(infos[derivation] for derivation in image.closure)
                    within = rule(closure, requested)
                    for registry in registries:
                        registry.publish(number, within(max(1, registry.budget - 1)), closure)
                for registry in registries:
                    registry.pull(node, number)
    return {registry.budget: Score(registry.pulled, sum(registry.layers.sizes)) for registry in registries}


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
