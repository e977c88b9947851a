from hypothesis import given, settings

from nixery.closure import Closure, StorePath
from scripts.bench_layers.dominators import dominated_groups
from tests.unit.layering.graphs import closure, path, requested_and_closure


def groups(found: dict[StorePath, list[StorePath]]) -> set[tuple[StorePath, ...]]:
    return {tuple(members) for members in found.values()}


def test_what_one_path_alone_leads_to_goes_with_it() -> None:
    found = dominated_groups(closure({1: [2], 2: [3], 3: []}), [path(1)])
    assert groups(found) == {(path(1), path(2), path(3))}


def test_the_bottom_of_a_diamond_goes_with_its_top() -> None:
    found = dominated_groups(closure({1: [2, 3], 2: [4], 3: [4], 4: []}), [path(1)])
    assert groups(found) == {(path(1), path(2), path(3), path(4))}


def test_what_two_requested_paths_share_stands_alone() -> None:
    found = dominated_groups(closure({1: [3], 2: [3], 3: [4], 4: []}), [path(1), path(2)])
    assert groups(found) == {(path(1),), (path(2),), (path(3), path(4))}


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
def test_agrees_with_the_definition(drawn: tuple[list[StorePath], Closure]) -> None:
    requested, closed = drawn
    found = dominated_groups(closed, requested)
    for top, members in found.items():
        cut_off = {info.path for info in closed} - reachable_without(requested, closed, top)
        # A path belongs to the topmost path that dominates it: the top is dominated by nothing else.
        assert set(members) == cut_off
        assert all(
            other == top or top in reachable_without(requested, closed, other)
            for other in (i.path for i in closed)
        )
