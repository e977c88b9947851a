import random

from hypothesis import given, settings
from hypothesis import strategies as st

from nixery.closure import Closure, PathInfo, StorePath
from nixery.layering.grouping import SHARE_FOR_GROUPS, LayerGroup, count_inputs, group_into_layers
from nixery.layering.popularity import Popularity
from tests.unit.layering.graphs import closure, path, requested_and_closure

NONE = Popularity()
Drawn = tuple[list[StorePath], Closure]

popularities = st.builds(
    Popularity, st.dictionaries(st.sampled_from(["p1", "p2", "p3"]), st.integers(0, 200))
)


def members(groups: tuple[LayerGroup, ...]) -> list[tuple[StorePath, ...]]:
    return [group.paths for group in groups]


def unrelated(count: int, size: int = 1) -> list[PathInfo]:
    return [PathInfo(path(n), "", size, ()) for n in range(90, 90 + count)]


def test_within_the_budget_every_path_has_a_layer() -> None:
    closed = closure({1: [2, 3], 2: [], 3: []})
    assert sorted(members(group_into_layers(closed, NONE, 3))) == [(path(1),), (path(2),), (path(3),)]


def test_a_budget_of_one_gives_one_layer() -> None:
    closed = closure({1: [2, 3], 2: [], 3: []})
    assert members(group_into_layers(closed, NONE, 1)) == [(path(1), path(2), path(3))]


def test_the_largest_paths_have_separate_layers_and_the_small_ones_share() -> None:
    closed = closure({1: [], 2: [], 3: [], 4: []}, {1: 10, 2: 2, 3: 9, 4: 1})
    assert members(group_into_layers(closed, NONE, 3)) == [(path(1),), (path(3),), (path(2), path(4))]


def test_a_popular_path_takes_precedence_over_a_slightly_larger_one() -> None:
    closed = closure({1: [], 2: [], 3: []}, {1: 10, 2: 6, 3: 4})
    assert (path(1),) in members(group_into_layers(closed, NONE, 2))
    assert (path(2),) in members(group_into_layers(closed, Popularity({"p2": 100}), 2))
    assert (path(2),) not in members(group_into_layers(closed, Popularity({"p2": 99}), 2))
    assert (path(3),) not in members(group_into_layers(closed, Popularity({"p3": 100}), 2))


def test_certificates_are_always_popular() -> None:
    for name in ("nss-cacert-3.9", "cacert-1", "iana-etc-2"):
        certificates = path(9, name)
        closed = Closure([*closure({1: [], 2: []}, {1: 10, 2: 3}), PathInfo(certificates, "", 6, ())])
        assert (certificates,) in members(group_into_layers(closed, NONE, 2))


def test_small_paths_are_grouped_by_how_often_they_change() -> None:
    # Path 1 changes with each of the others; of eleven layers, the two smallest hold the small paths.
    small = {1: list(range(2, 6)), 2: [], 3: [], 4: [], 5: []}
    sizes = {1: 4, 2: 1, 3: 1, 4: 1, 5: 1}
    large: dict[int, list[int]] = {n: [] for n in range(10, 19)}
    closed = closure({**small, **large}, {**sizes, **dict.fromkeys(large, 100)})
    groups = members(group_into_layers(closed, NONE, 11))
    assert (path(1),) in groups
    assert (path(2), path(3), path(4), path(5)) in groups


def test_empty_paths_have_a_layer_too() -> None:
    closed = closure({1: [], 2: [], 3: []}, dict.fromkeys((1, 2, 3), 0))
    assert members(group_into_layers(closed, NONE, 1)) == [(path(1), path(2), path(3))]


def test_the_highest_rating_comes_first_and_ties_go_by_name() -> None:
    closed = Closure(
        [
            PathInfo(path(1, "z"), "", 5, ()),
            PathInfo(path(2, "a"), "", 5, ()),
            PathInfo(path(3, "p"), "", 7, ()),
            PathInfo(path(4, "popular"), "", 1, ()),
        ]
    )
    groups = group_into_layers(closed, Popularity({"popular": 50}), 9)
    assert members(groups) == [(path(4, "popular"),), (path(3, "p"),), (path(2, "a"),), (path(1, "z"),)]
    assert [group.rating for group in groups] == [50, 7, 5, 5]


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 12), popularities)
def test_every_path_is_in_one_layer_within_the_budget(
    drawn: Drawn, budget: int, popularity: Popularity
) -> None:
    _, closed = drawn
    groups = group_into_layers(closed, popularity, budget)
    assert sorted(p for group in groups for p in group.paths) == [info.path for info in closed]
    assert 1 <= len(groups) <= budget
    assert all(list(group.paths) == sorted(group.paths) for group in groups)


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 12), popularities, st.randoms(use_true_random=False))
def test_the_order_of_the_closure_changes_nothing(
    drawn: Drawn, budget: int, popularity: Popularity, shuffler: random.Random
) -> None:
    _, closed = drawn
    expected = group_into_layers(closed, popularity, budget)
    infos = [
        PathInfo(i.path, i.nar_hash, i.nar_size, tuple(shuffler.sample(i.references, len(i.references))))
        for i in closed
    ]
    shuffler.shuffle(infos)
    counts = list(popularity.counts.items())
    shuffler.shuffle(counts)
    assert group_into_layers(Closure(infos), Popularity(dict(counts)), budget) == expected


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 5), st.integers(1, 300_000_000))
def test_unrelated_packages_do_not_change_the_layers_within_the_budget(
    drawn: Drawn, count: int, size: int
) -> None:
    _, closed = drawn
    added = unrelated(count, size)
    alone = group_into_layers(closed, NONE, len(closed) + count)
    together = group_into_layers(Closure([*closed, *added]), NONE, len(closed) + count)
    assert set(members(together)) == {*members(alone), *((info.path,) for info in added)}


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 12), st.integers(1, 3), st.integers(1, 300_000_000))
def test_beyond_the_budget_a_new_path_displaces_at_most_one_path(
    drawn: Drawn, budget: int, count: int, size: int
) -> None:
    _, closed = drawn
    rests = max(1, int(budget * SHARE_FOR_GROUPS))
    alone = set(members(group_into_layers(closed, NONE, budget)))
    together = set(members(group_into_layers(Closure([*closed, *unrelated(count, size)]), NONE, budget)))
    # In addition, the shared layers, which are the small ones.
    assert len(alone - together) <= count + rests


@settings(deadline=None)
@given(requested_and_closure(), st.integers(1, 12))
def test_new_hashes_do_not_change_the_grouping(drawn: Drawn, budget: int) -> None:
    _, closed = drawn

    # In reverse order, as if everything had been rebuilt.
    def renamed(old: StorePath) -> StorePath:
        return StorePath(f"{99 - int(old.base_name[:32]):032d}-{old.name}")

    rebuilt = Closure(
        PathInfo(renamed(i.path), i.nar_hash, i.nar_size, tuple(map(renamed, i.references))) for i in closed
    )
    before = members(group_into_layers(closed, NONE, budget))
    after = members(group_into_layers(rebuilt, NONE, budget))
    assert [{renamed(p) for p in group} for group in before] == [set(group) for group in after]


def reachable(start: StorePath, closed: Closure) -> set[StorePath]:
    return {start}.union(*(reachable(reference, closed) for reference in closed[start].references))


@settings(deadline=None)
@given(requested_and_closure())
def test_inputs_are_the_reachable_paths(drawn: tuple[list[StorePath], Closure]) -> None:
    _, closed = drawn
    assert count_inputs(closed) == {info.path: len(reachable(info.path, closed)) for info in closed}


def test_long_chains_need_no_stack() -> None:
    length = 5_000
    chain = closure({n: [n + 1] if n < length else [] for n in range(1, length + 1)})
    assert count_inputs(chain)[path(1)] == length


def test_new_hashes_do_not_change_the_order_of_layers_of_one_rating() -> None:
    def layers(hashes: dict[str, int]) -> list[set[str]]:
        sizes = {"a": 5, "b": 10, "c": 5}
        closed = Closure(
            PathInfo(StorePath(f"{hashes[name]:032d}-{name}"), f"sha256:{name}", size, ())
            for name, size in sizes.items()
        )
        return [{path.name for path in group} for group in members(group_into_layers(closed, NONE, 2))]

    assert layers({"a": 1, "b": 2, "c": 3}) == layers({"a": 3, "b": 2, "c": 1})
