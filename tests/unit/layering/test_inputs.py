from hypothesis import given, settings

from nixery.closure import Closure, StorePath
from nixery.layering.grouping import count_inputs
from tests.unit.layering.graphs import closure, path, requested_and_closure


def reachable(start: StorePath, closed: Closure) -> set[StorePath]:
    return {start}.union(*(reachable(reference, closed) for reference in closed[start].references))


@settings(deadline=None)
@given(requested_and_closure())
def test_counts_what_can_be_reached(drawn: tuple[list[StorePath], Closure]) -> None:
    _, closed = drawn
    assert count_inputs(closed) == {info.path: len(reachable(info.path, closed)) for info in closed}


def test_long_chains_need_no_stack() -> None:
    length = 5_000
    chain = closure({n: [n + 1] if n < length else [] for n in range(1, length + 1)})
    assert count_inputs(chain)[path(1)] == length
