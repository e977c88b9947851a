"""A fleet of nodes, the images that they run, and updates of packages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench_layers.debian import Derivation, reference_counts

# The smallest and the largest number of packages in an image name.
_PACKAGES = (1, 8)
# In bytes. In larger images, one big package dominates under any rule.
_LARGEST = 4_000_000_000


@dataclass(frozen=True, slots=True)
class FleetImage:
    """An image of the fleet, as indexes of derivations.

    Attributes:
        requested: the packages in its name.
        closure: all of its derivations, sorted.
    """

    requested: tuple[int, ...]
    closure: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The images and the nodes.

    Attributes:
        images: all images.
        nodes: for each node, the indexes of the images that it runs.
    """

    images: tuple[FleetImage, ...]
    nodes: tuple[tuple[int, ...], ...]


def make_fleet(derivations: Sequence[Derivation], images: int, nodes: int, each: int, seed: int) -> Fleet:
    """Draw a fleet: packages with many dependents are requested often, but every package may be requested.

    Args:
        derivations: dependencies first.
        images: how many.
        nodes: how many.
        each: images that a node runs.
        seed: of the random numbers.
    """
    draw = random.Random(seed)  # noqa: S311 - a reproducible simulation
    weights = [count + 1 for count in reference_counts(derivations)]
    made: list[FleetImage] = []
    while len(made) < images:
        wanted = draw.choices(range(len(derivations)), weights, k=draw.randint(*_PACKAGES))
        closure = _closure(derivations, wanted)
        if sum(derivations[number].size for number in closure) <= _LARGEST:
            made.append(FleetImage(tuple(sorted(set(wanted))), closure))
    return Fleet(tuple(made), tuple(tuple(draw.sample(range(images), each)) for _ in range(nodes)))


def _closure(derivations: Sequence[Derivation], wanted: Sequence[int]) -> tuple[int, ...]:
    found: set[int] = set()
    todo = list(wanted)
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += derivations[number].dependencies
    return tuple(sorted(found))


def updates(derivations: Sequence[Derivation], rounds: int, share: float, seed: int) -> list[list[int]]:
    """Return the version of each derivation at the beginning and after each round of updates.

    Args:
        derivations: of the whole set.
        rounds: how many.
        share: of derivations that get a new version in a round; their dependents change with them.
        seed: of the random numbers.
    """
    draw = random.Random(seed)  # noqa: S311
    states = [[0] * len(derivations)]
    for _ in range(rounds):
        versions = list(states[-1])
        for number in draw.sample(range(len(derivations)), round(share * len(derivations))):
            versions[number] += 1
        states.append(versions)
    return states
