import random

from hypothesis import given
from hypothesis import strategies as st

from nixery.closure.graph import Closure, PathInfo
from nixery.closure.store_path import StorePath
from nixery.layering.grouping import BIG, LayerGroup, group_into_layers
from nixery.layering.popularity import Popularity
from tests.unit.layering.graphs import closure, path, requested_and_closure

NONE = Popularity()


def members(groups: tuple[LayerGroup, ...]) -> list[tuple[StorePath, ...]]:
    return [group.paths for group in groups]


def test_a_popular_path_gets_its_own_layer() -> None:
    closed = closure({1: [2], 2: []})
    assert len(group_into_layers(closed, [path(1)], NONE, 9)) == 1
    assert len(group_into_layers(closed, [path(1)], Popularity({"p2": 100}), 9)) == 2
    assert len(group_into_layers(closed, [path(1)], Popularity({"p2": 99}), 9)) == 1


def test_a_big_path_gets_its_own_layer_by_its_own_size() -> None:
    big = closure({1: [2], 2: []}, {2: BIG + 1})
    assert len(group_into_layers(big, [path(1)], NONE, 9)) == 2
    # Path 1's closure is big, path 1 is not: the sum of what it refers to is no reason.
    many = closure({1: [2, 3], 2: [], 3: []}, {2: BIG, 3: BIG})
    assert len(group_into_layers(many, [path(1)], NONE, 9)) == 1


def test_certificates_are_always_popular() -> None:
    for name in ("nss-cacert-3.9", "cacert-1", "iana-etc-2"):
        certificates = path(2, name)
        closed = Closure([PathInfo(path(1), "", 1, (certificates,)), PathInfo(certificates, "", 1, ())])
        assert len(group_into_layers(closed, [path(1)], NONE, 9)) == 2


def test_the_highest_rating_comes_first_and_ties_go_by_path() -> None:
    closed = closure({1: [], 2: [], 3: [], 4: []}, {1: 5, 2: 5, 3: 7, 4: 1})
    popularity = Popularity({"p4": 50})
    requested = [path(n) for n in (1, 2, 3, 4)]
    assert members(group_into_layers(closed, requested, popularity, 9)) == [
        (path(4),),
        (path(3),),
        (path(1),),
        (path(2),),
    ]


def test_the_lowest_are_merged() -> None:
    closed = closure({1: [], 2: [], 3: [], 4: []}, {1: 10, 2: 2, 3: 9, 4: 1})
    groups = group_into_layers(closed, [path(n) for n in (1, 2, 3, 4)], NONE, 3)
    assert members(groups) == [(path(1),), (path(3),), (path(2), path(4))]


@given(
    requested_and_closure(),
    st.integers(1, 12),
    st.dictionaries(st.sampled_from(["p1", "p2", "p3"]), st.integers(0, 200)),
)
def test_every_path_is_in_one_layer_within_the_budget(
    drawn: tuple[list[StorePath], Closure], budget: int, counts: dict[str, int]
) -> None:
    requested, closed = drawn
    groups = group_into_layers(closed, requested, Popularity(counts), budget)
    assert sorted(p for group in groups for p in group.paths) == [info.path for info in closed]
    assert 1 <= len(groups) <= budget


@given(requested_and_closure(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_no_order_changes_anything(
    drawn: tuple[list[StorePath], Closure], budget: int, shuffler: random.Random
) -> None:
    requested, closed = drawn
    expected = group_into_layers(closed, requested, NONE, budget)
    infos = list(closed)
    shuffler.shuffle(infos)
    shuffler.shuffle(requested)
    assert group_into_layers(Closure(infos), requested, NONE, budget) == expected


@given(requested_and_closure())
def test_an_unrelated_package_leaves_the_layers_alone(drawn: tuple[list[StorePath], Closure]) -> None:
    requested, closed = drawn
    unrelated = path(99)
    alone = group_into_layers(closed, requested, NONE, 50)
    together = group_into_layers(
        Closure([*closed, PathInfo(unrelated, "", 1, ())]), [*requested, unrelated], NONE, 50
    )
    assert set(members(together)) == {*members(alone), (unrelated,)}
