"""How many store paths lie below each path of a closure.

Which store paths share a layer, and in which order the layers come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.popularity import Popularity


def count_inputs(closure: Closure) -> dict[StorePath, int]:
    """Count the paths that each path needs, itself included: it changes when any of them does.

    The number is the path's own, whatever image it is in. Sets of paths are integers with a bit for each: what takes
    time is proportional to references times paths, but 64 paths at a time.

    Returns:
        The counts, in an order in which every path comes after those it refers to.
    """
    below: dict[StorePath, int] = {}
    for info in closure:
        # Without recursion: chains of references may be longer than Python's stack.
        stack = [info.path]
        while stack:
            path = stack[-1]
            missing = [reference for reference in closure[path].references if reference not in below]
            if missing:
                stack += missing
                continue
            stack.pop()
            if path not in below:
                inputs = 1 << len(below)
                for reference in closure[path].references:
                    inputs |= below[reference]
                below[path] = inputs
    return {path: inputs.bit_count() for path, inputs in below.items()}


# One layer in this many is for what has none of its own.
_SHARE_OF_RESTS = 5

# A popular path goes before one that is not if it has at least half of its size.
_POPULAR_WEIGHS = 2


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The store paths of one layer.

    Attributes:
        paths: sorted, at least one.
        rating: sum of popularity times bytes; what is worth most to share comes first.
    """

    paths: tuple[StorePath, ...]
    rating: int


def group_into_layers(closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerGroup, ...]:
    """Group a closure into at most ``budget`` layers, the highest rating first.

    The result depends on nothing but the values given: not on the order of the closure or of references.

    Args:
        closure: everything the image holds.
        popularity: reference counts.
        budget: the most layers there may be, at least 1.
    """
    groups = [
        LayerGroup(
            tuple(sorted(info.path for info in group)),
            sum(popularity.count(info.path) * info.nar_size for info in group),
        )
        for group in _partition(closure, popularity, budget)
    ]
    return tuple(sorted(groups, key=lambda group: (-group.rating, _name_first(group.paths[0]))))


def _partition(closure: Closure, popularity: Popularity, budget: int) -> Iterable[list[PathInfo]]:
    if len(closure) <= budget:
        return [[info] for info in closure]
    rests = max(1, budget // _SHARE_OF_RESTS)

    def rank(info: PathInfo) -> tuple[int, str, str]:
        return (-_weight(info, popularity), *_name_first(info.path))

    heaviest_first = sorted(closure, key=rank)
    alone = [[info] for info in heaviest_first[: budget - rests]]
    return alone + _by_inputs(heaviest_first[budget - rests :], count_inputs(closure), rests)


def _weight(info: PathInfo, popularity: Popularity) -> int:
    """How much a path deserves a layer of its own."""
    return info.nar_size * (_POPULAR_WEIGHS if popularity.is_popular(info.path) else 1)


def _by_inputs(infos: Iterable[PathInfo], inputs: dict[StorePath, int], parts: int) -> list[list[PathInfo]]:
    """Put together what changes about as often, in at most so many parts with about as many bytes each."""
    seldom_first = sorted(infos, key=lambda info: (inputs[info.path], _name_first(info.path)))
    total = sum(info.nar_size for info in seldom_first)
    found: dict[int, list[PathInfo]] = {}
    before = 0
    for info in seldom_first:
        found.setdefault(min(before * parts // max(total, 1), parts - 1), []).append(info)
        before += info.nar_size
    return list(found.values())


def _name_first(path: StorePath) -> tuple[str, str]:
    # Hashes change with every update, names do not: ties are broken in the same way after it.
    return path.name, path.base_name
