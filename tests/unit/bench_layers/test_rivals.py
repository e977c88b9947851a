from hypothesis import given, settings
from hypothesis import strategies as st

from nixery.closure import Closure, StorePath
from nixery.layering.popularity import Popularity
from scripts.bench_layers.rivals import (
    docker_tools,
    dominated_groups,
    dominator_tree,
    nixery,
    one_path_each,
    single_layer,
)
from tests.unit.layering.graphs import closure, path, requested_and_closure


def test_docker_tools_orders_by_the_ways_that_lead_to_a_path() -> None:
    # The example in the comment of nixpkgs' script: A - B - C - D - F, B - E - F, C - E, A - G.
    a, b, c, d, e, f, g = range(1, 8)
    closed = closure({a: [b, g], b: [c, e], c: [d, e], d: [f], e: [f], f: [], g: []})
    groups = docker_tools(closed, [path(a)])(7)
    assert groups[:2] == [(path(f),), (path(e),)]
    assert groups[-1] == (path(a),)


def test_nixery_merges_the_lowest_ratings() -> None:
    closed = closure({1: [], 2: [], 3: []}, {1: 10, 2: 2, 3: 1})
    requested = [path(n) for n in (1, 2, 3)]
    assert set(nixery(Popularity())(closed, requested)(2)) == {(path(1),), (path(2), path(3))}
    popular = nixery(Popularity({"p3": 100}))(closed, requested)(2)
    assert set(popular) == {(path(3),), (path(1), path(2))}


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 12))
def test_all_rules_keep_the_budget_and_every_path(
    drawn: tuple[list[StorePath], Closure], budget: int
) -> None:
    requested, closed = drawn
    for rule in (
        single_layer,
        one_path_each,
        docker_tools,
        nixery(Popularity()),
        dominator_tree(Popularity()),
    ):
        groups = rule(closed, requested)(budget)
        assert sorted(p for group in groups for p in group) == [info.path for info in closed]
        assert len(groups) <= budget


def grouped_paths(found: dict[StorePath, list[StorePath]]) -> set[tuple[StorePath, ...]]:
    return {tuple(members) for members in found.values()}


def test_dependencies_of_one_path_are_grouped_with_it() -> None:
    found = dominated_groups(closure({1: [2], 2: [3], 3: []}), [path(1)])
    assert grouped_paths(found) == {(path(1), path(2), path(3))}


def test_the_bottom_of_a_diamond_is_grouped_with_its_top() -> None:
    found = dominated_groups(closure({1: [2, 3], 2: [4], 3: [4], 4: []}), [path(1)])
    assert grouped_paths(found) == {(path(1), path(2), path(3), path(4))}


def test_shared_dependencies_are_a_group() -> None:
    found = dominated_groups(closure({1: [3], 2: [3], 3: [4], 4: []}), [path(1), path(2)])
    assert grouped_paths(found) == {(path(1),), (path(2),), (path(3), path(4))}


def reachable_without(start: list[StorePath], closed: Closure, avoided: StorePath) -> set[StorePath]:
    seen: set[StorePath] = set()
    todo = [p for p in start if p != avoided]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += [r for r in closed[current].references if r != avoided]
    return seen


@settings(deadline=None)
@given(requested_and_closure())
def test_groups_match_the_definition_of_dominators(drawn: tuple[list[StorePath], Closure]) -> None:
    requested, closed = drawn
    found = dominated_groups(closed, requested)
    for top, members in found.items():
        cut_off = {info.path for info in closed} - reachable_without(requested, closed, top)
        # A path belongs to the topmost path that dominates it, which no other path dominates.
        assert set(members) == cut_off
        assert all(
            other == top or top in reachable_without(requested, closed, other)
            for other in (i.path for i in closed)
        )
