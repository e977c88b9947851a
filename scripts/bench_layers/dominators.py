"""The subtrees directly under the root of a dominator tree."""

from __future__ import annotations

from collections.abc import Iterable

import networkx

from nixery.closure import Closure, StorePath

# Stands for the image. No store path has an empty name.
_ROOT = StorePath("")


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
        # Walk up to a path whose top is known, then note it for the whole way: linear in all, and no recursion.
        way = [info.path]
        while way[-1] not in top_of and immediate_dominator[way[-1]] != _ROOT:
            way.append(immediate_dominator[way[-1]])
        top = top_of.get(way[-1], way[-1])
        top_of.update(dict.fromkeys(way, top))
        groups.setdefault(top, []).append(info.path)
    return groups
