"""Which store paths share a layer, and in which order the layers come."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from nixery.closure.graph import Closure
from nixery.closure.store_path import StorePath
from nixery.layering.dominators import dominated_groups
from nixery.layering.popularity import Popularity

# Bytes (NAR size) from which on a path gets a layer of its own.
BIG = 100 * 1000 * 1000


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The store paths of one layer.

    Attributes:
        paths: sorted, at least one.
        rating: popularity times bytes; what is worth most to share comes first.
    """

    paths: tuple[StorePath, ...]
    rating: int

    @property
    def _rank(self) -> tuple[int, StorePath]:
        return (self.rating, self.paths[0])

    def __lt__(self, other: LayerGroup) -> bool:
        return self._rank < other._rank


def group_into_layers(
    closure: Closure, requested: Iterable[StorePath], popularity: Popularity, budget: int
) -> tuple[LayerGroup, ...]:
    """Group a closure into at most ``budget`` layers, the highest rating first.

    The result depends on nothing but the values given: not on the order of ``requested``, of the closure or of
    references.

    Args:
        closure: everything the image holds.
        requested: the paths the image itself refers to; everything must be reachable from them.
        popularity: reference counts.
        budget: the most layers there may be, at least 1.
    """
    special = (info.path for info in closure if info.nar_size > BIG or popularity.is_popular(info.path))
    groups = [
        LayerGroup(tuple(paths), popularity.count(top) * sum(closure[path].nar_size for path in paths))
        for top, paths in dominated_groups(closure, {*requested, *special}).items()
    ]
    return tuple(sorted(_merge_down_to(budget, groups), key=lambda group: (-group.rating, group.paths[0])))


def _merge_down_to(budget: int, groups: list[LayerGroup]) -> list[LayerGroup]:
    heapq.heapify(groups)
    while len(groups) > budget:
        lowest, second = heapq.heappop(groups), heapq.heappop(groups)
        merged = LayerGroup(tuple(sorted(lowest.paths + second.paths)), lowest.rating + second.rating)
        heapq.heappush(groups, merged)
    return groups
