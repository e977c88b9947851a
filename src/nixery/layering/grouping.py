"""Group store paths into layers and order the layers; the package's docstring explains the rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.popularity import Popularity

# The share of the budget for layers of several paths; the rest is for paths with a layer of their own.
SHARE_FOR_GROUPS = Fraction(1, 5)

# The factor by which the size of a popular path counts.
_POPULAR_WEIGHT = 2


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The store paths of one layer.

    Attributes:
        paths: sorted, at least one.
        rating: sum of popularity times bytes over the paths.
    """

    paths: tuple[StorePath, ...]
    rating: int


def group_into_layers(closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerGroup, ...]:
    """Group a closure into at most ``budget`` layers, the highest rating first.

    The result depends only on the values, not on the order of the closure or of references.

    Args:
        closure: of the image.
        popularity: reference counts.
        budget: the most layers, at least 1.
    """
    groups = [
        LayerGroup(
            tuple(sorted(info.path for info in group)),
            sum(popularity.count(info.path) * info.nar_size for info in group),
        )
        for group in _partition(closure, popularity, budget)
    ]
    return tuple(sorted(groups, key=lambda group: (-group.rating, min(map(_name_first, group.paths)))))


def count_inputs(closure: Closure) -> dict[StorePath, int]:
    """Count the paths that each path depends on, including itself: it changes when any of them changes.

    The number is the same in every image. A set of paths is an integer with a bit for each path, so the time
    is O(references x paths / 64).

    Returns:
        The counts, in an order in which every path follows those that it refers to.
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


def _partition(closure: Closure, popularity: Popularity, budget: int) -> Iterable[list[PathInfo]]:
    if len(closure) <= budget:
        return [[info] for info in closure]
    grouped = max(1, int(budget * SHARE_FOR_GROUPS))

    def rank(info: PathInfo) -> tuple[int, str, str]:
        return (-_weight(info, popularity), *_name_first(info.path))

    heaviest_first = sorted(closure, key=rank)
    alone = [[info] for info in heaviest_first[: budget - grouped]]
    return alone + _by_inputs(heaviest_first[budget - grouped :], count_inputs(closure), grouped)


def _weight(info: PathInfo, popularity: Popularity) -> int:
    """Return the benefit of a separate layer for a path."""
    return info.nar_size * (_POPULAR_WEIGHT if popularity.is_popular(info.path) else 1)


def _by_inputs(infos: Iterable[PathInfo], inputs: dict[StorePath, int], parts: int) -> list[list[PathInfo]]:
    """Group paths that change about equally often, into parts of about equal size in bytes."""
    rarest_first = sorted(infos, key=lambda info: (inputs[info.path], _name_first(info.path)))
    total = sum(info.nar_size for info in rarest_first)
    found: dict[int, list[PathInfo]] = {}
    before = 0
    for info in rarest_first:
        found.setdefault(min(before * parts // max(total, 1), parts - 1), []).append(info)
        before += info.nar_size
    return list(found.values())


def _name_first(path: StorePath) -> tuple[str, str]:
    # Names do not change with an update, unlike hashes, so ties are broken in the same way after it.
    return path.name, path.base_name
