"""Rejected rules for layers; docs/reference/layering-comparison.md has their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.grouping import SHARE_FOR_GROUPS, count_inputs
from nixery.layering.popularity import Popularity
from scripts.bench_layers.simulation import Groups, Rule


def by_weight(
    weight: Callable[[PathInfo, int], float], rest: Callable[[PathInfo, int], float] | None
) -> Rule:
    """Make a rule: the heaviest paths stand alone, the rest is one layer, or is ordered and cut into some.

    Args:
        weight: of a path with the number of its inputs.
        rest: what the other paths are ordered by; without it, they are one layer.
    """

    def rule(closure: Closure, _requested: Sequence[StorePath]) -> Callable[[int], Groups]:
        inputs = count_inputs(closure)
        order = sorted(closure, key=lambda i: (-weight(i, inputs[i.path]), i.path.name))
        return lambda budget: within(budget, order, inputs)

    def within(budget: int, order: Sequence[PathInfo], inputs: Mapping[StorePath, int]) -> Groups:
        if len(order) <= budget:
            return [(info.path,) for info in order]
        parts = max(1, int(budget * SHARE_FOR_GROUPS)) if rest else 1
        others = list(order[budget - parts :])
        if rest:
            others.sort(key=lambda i: (rest(i, inputs[i.path]), i.path.name))
        total = sum(info.nar_size for info in others)
        found: dict[int, list[StorePath]] = {}
        before = 0
        for info in others:
            found.setdefault(before * parts // total, []).append(info.path)
            before += info.nar_size
        return [(info.path,) for info in order[: budget - parts]] + [tuple(paths) for paths in found.values()]

    return rule


def tried(popularity: Popularity) -> dict[str, Rule]:
    """Return the rules by their difference from the chosen one."""

    def count(info: PathInfo) -> int:
        return popularity.count(info.path)

    return {
        "every path alone, without a budget": lambda closure, _requested: (
            lambda _budget: [(info.path,) for info in closure]
        ),
        "by size, one rest": by_weight(lambda info, _: info.nar_size, None),
        "by size, rests by popularity": by_weight(
            lambda info, _: info.nar_size, lambda info, _: -count(info)
        ),
        "by size x popularity": by_weight(
            lambda info, _: info.nar_size * count(info), lambda _, inputs: inputs
        ),
        "by size x root of popularity": by_weight(
            lambda info, _: info.nar_size * count(info) ** 0.5, lambda _, inputs: inputs
        ),
        "by size / root of inputs": by_weight(
            lambda info, inputs: info.nar_size / inputs**0.5, lambda _, inputs: inputs
        ),
        "by popularity, rests by inputs": by_weight(lambda info, _: count(info), lambda _, inputs: inputs),
    }
