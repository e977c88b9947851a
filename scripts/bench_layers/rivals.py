"""Other rules for grouping paths into layers, from their descriptions; one module, to be compared side by side."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import networkx

from nixery.closure import Closure, StorePath
from nixery.layering.popularity import Popularity
from scripts.bench_layers.simulation import Groups, Rule

# Larger paths, in bytes, have a separate layer.
_BIG = 100 * 1000 * 1000

# Stands for the image: no store path has an empty name.
_ROOT = StorePath("")


def single_layer(closure: Closure, _requested: Sequence[StorePath]) -> Callable[[int], Groups]:
    """Make a single layer."""
    paths = tuple(info.path for info in closure)
    return lambda _budget: [paths]


def one_path_each(closure: Closure, _requested: Sequence[StorePath]) -> Callable[[int], Groups]:
    """Make a layer for each path in the order of names; the last layer has the rest."""
    return partial(_one_layer_for_each_of_the_first, sorted((info.path for info in closure), key=_name_first))


def docker_tools(closure: Closure, requested: Sequence[StorePath]) -> Callable[[int], Groups]:
    """Group as nixpkgs' dockerTools does: the most referenced paths have a layer each, and the last has the rest.

    The number that it orders by counts a path once for every way from the top to each path that leads to it,
    itself included; ties go by name (``references-by-popularity`` in nixpkgs).
    """
    above: dict[StorePath, set[StorePath]] = {info.path: {info.path} for info in closure}
    ways = dict.fromkeys(above, 0)
    referred_to = {reference for info in closure for reference in info.references}
    for path in requested:
        ways[path] += path not in referred_to
    for path in dependents_first(closure):
        for reference in closure[path].references:
            ways[reference] += ways[path]
            above[reference] |= above[path]
    rank = {path: sum(ways[other] for other in others) for path, others in above.items()}
    return partial(
        _one_layer_for_each_of_the_first, sorted(rank, key=lambda path: (-rank[path], _name_first(path)))
    )


def nixery(popularity: Popularity) -> Rule:
    """Group as Nixery does: subtrees under the root of the dominator tree, merged from the lowest rating up.

    It adds up the sizes of closures, so a shared path counts once for each.
    """
    return _by_dominators(popularity, _closure_sizes)


def dominator_tree(popularity: Popularity) -> Rule:
    """Group in the same way by the sizes of the paths themselves, as earlier versions of this project did."""
    return _by_dominators(popularity, lambda closure: {info.path: info.nar_size for info in closure})


def _by_dominators(popularity: Popularity, sizes_of: Callable[[Closure], Mapping[StorePath, int]]) -> Rule:
    def rule(closure: Closure, requested: Sequence[StorePath]) -> Callable[[int], Groups]:
        sizes = sizes_of(closure)
        special = {path for path, size in sizes.items() if size > _BIG or popularity.is_popular(path)}
        groups = [
            (popularity.count(top) * sum(sizes[path] for path in paths), tuple(paths))
            for top, paths in dominated_groups(closure, {*requested, *special}).items()
        ]
        return partial(_merge_lowest, groups)

    return rule


def _merge_lowest(groups: Sequence[tuple[int, tuple[StorePath, ...]]], budget: int) -> Groups:
    heap = list(groups)
    heapq.heapify(heap)
    while len(heap) > budget:
        (rating, paths), (other_rating, other) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (rating + other_rating, tuple(sorted(paths + other))))
    return [paths for _, paths in heap]


def dependents_first(closure: Closure) -> list[StorePath]:
    """Order paths before their references."""
    order: dict[StorePath, None] = {}
    for info in closure:
        stack = [info.path]
        while stack:
            missing = [path for path in closure[stack[-1]].references if path not in order]
            if missing:
                stack += missing
            else:
                order.setdefault(stack.pop())
    return list(reversed(order))


def _closure_sizes(closure: Closure) -> dict[StorePath, int]:
    below: dict[StorePath, set[StorePath]] = {}
    for path in reversed(dependents_first(closure)):
        below[path] = {path}.union(*(below[reference] for reference in closure[path].references))
    return {path: sum(closure[other].nar_size for other in others) for path, others in below.items()}


def _one_layer_for_each_of_the_first(paths: Sequence[StorePath], budget: int) -> Groups:
    alone: Groups = [(path,) for path in paths[: budget - 1]]
    return [*alone, tuple(paths[budget - 1 :])] if len(paths) >= budget else alone


def _name_first(path: StorePath) -> tuple[str, str]:
    return path.name, path.base_name


def dominated_groups(closure: Closure, under_root: Iterable[StorePath]) -> dict[StorePath, list[StorePath]]:
    """Group the paths of a closure by the path directly under the root that dominates them.

    Args:
        closure: the reference graph. Every path must be reachable from ``under_root``.
        under_root: paths the root itself refers to.

    Returns:
        The members of each group, in the order of their paths, by the path that dominates the group.
    """
    graph: networkx.DiGraph[StorePath] = networkx.DiGraph()
    graph.add_node(_ROOT)
    for path in under_root:
        graph.add_edge(_ROOT, path)
    for info in closure:
        for reference in info.references:
            graph.add_edge(info.path, reference)
    immediate_dominator = networkx.immediate_dominators(graph, _ROOT)

    groups: dict[StorePath, list[StorePath]] = {}
    top_of: dict[StorePath, StorePath] = {}
    for info in closure:
        # Walk up to a path whose top is known, then record it for the whole way: linear, without recursion.
        way = [info.path]
        while way[-1] not in top_of and immediate_dominator[way[-1]] != _ROOT:
            way.append(immediate_dominator[way[-1]])
        top = top_of.get(way[-1], way[-1])
        top_of.update(dict.fromkeys(way, top))
        groups.setdefault(top, []).append(info.path)
    return groups
