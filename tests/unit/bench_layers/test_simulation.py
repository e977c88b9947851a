from scripts.bench_layers.debian import Derivation, realise
from scripts.bench_layers.fleet import Fleet, FleetImage, make_fleet, updates
from scripts.bench_layers.rivals import one_path_each, single_layer
from scripts.bench_layers.simulation import Score, simulate

# A library, two programs that need it, and something else.
DERIVATIONS = [
    Derivation("library-1", 100, ()),
    Derivation("one-1", 10, (0,)),
    Derivation("two-1", 20, (0,)),
    Derivation("other-1", 1, ()),
]
FLEET = Fleet((FleetImage((1,), (0, 1)), FleetImage((2,), (0, 2))), ((0, 1), (1,)))


def test_an_update_changes_its_dependents_and_nothing_else() -> None:
    before, after = realise(DERIVATIONS, [0, 0, 0, 0]), realise(DERIVATIONS, [1, 0, 0, 0])
    assert [b.path == a.path for b, a in zip(before, after, strict=True)] == [False, False, False, True]


def test_a_node_does_not_pull_the_same_layer_twice() -> None:
    states = [realise(DERIVATIONS, [0, 0, 0, 0])] * 2
    # The first node pulls the library once, the second one as well.
    assert simulate(one_path_each, [9], FLEET, states) == {9: Score(100 + 10 + 20 + 100 + 20, 130)}
    assert simulate(single_layer, [9], FLEET, states) == {9: Score(110 + 120 + 120, 230)}


def test_after_an_update_only_changed_layers_are_pulled() -> None:
    states = [realise(DERIVATIONS, versions) for versions in ([0, 0, 0, 0], [0, 1, 0, 0])]
    assert simulate(one_path_each, [9], FLEET, states) == {9: Score(250 + 10, 140)}
    assert simulate(single_layer, [9], FLEET, states) == {9: Score(350 + 110, 340)}


def test_fleets_and_updates_are_reproducible() -> None:
    assert make_fleet(DERIVATIONS, 5, 2, 3, 1) == make_fleet(DERIVATIONS, 5, 2, 3, 1)
    fleet = make_fleet(DERIVATIONS, 5, 2, 3, 1)
    for image in fleet.images:
        assert all({*DERIVATIONS[n].dependencies, n} <= set(image.closure) for n in image.closure)
    assert [sum(state) for state in updates(DERIVATIONS, 2, 0.5, 1)] == [0, 2, 4]
