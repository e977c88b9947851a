"""Cycles and families become one derivation."""

import pytest
from locking.grouping import group_packages, strongly_connected_components

TRIPLET = "x86-64-linux-gnu"


def test_components_of_a_graph_with_two_cycles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(strongly_connected_components(graph)) == [["a", "b", "c"], ["d", "e"], ["f"]]


def test_components_are_found_in_a_chain_deeper_than_pythons_stack() -> None:
    graph = {f"n{number:05}": {f"n{number + 1:05}"} for number in range(20_000)} | {"n20000": {"n00000"}}
    (component,) = strongly_connected_components(graph)
    assert len(component) == 20_001


def test_a_cycle_is_one_group_named_after_its_shortest_member() -> None:
    groups = group_packages({"long-name": {"ab"}, "ab": {"long-name"}, "other": {"ab"}}, TRIPLET)
    assert groups == {"long-name": "ab", "ab": "ab", "other": "other"}


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_python_is_one_group_in_any_version(version: str) -> None:
    members = [
        "python3", "python3-minimal", "libpython3-stdlib", f"python{version}", f"python{version}-minimal",
        f"libpython{version}-stdlib", f"libpython{version}-minimal",
    ]  # fmt: skip
    graph: dict[str, set[str]] = {name: set() for name in [*members, f"libpython{version}", "python3.9"]}
    graph["python3"] = {f"python{version}"}
    groups = group_packages(graph, TRIPLET)
    assert {groups[name] for name in members} == {"python3"}
    assert groups[f"libpython{version}"] == f"libpython{version}"
    assert groups["python3.9"] == "python3.9"


def test_each_version_of_a_family_is_a_group_without_cross_compilers() -> None:
    names = ["gcc-12", "gcc-13", "libgcc-12-dev", f"gcc-13-{TRIPLET}", "gcc-13-aarch64-linux-gnu"]
    groups = group_packages({name: set() for name in names}, TRIPLET)
    assert groups["libgcc-12-dev"] == "gcc-12"
    assert groups[f"gcc-13-{TRIPLET}"] == "gcc-13"
    assert groups["gcc-13-aarch64-linux-gnu"] == "gcc-13-aarch64-linux-gnu"


def test_a_cycle_that_a_family_closes_is_merged_too() -> None:
    graph: dict[str, set[str]] = {"libc6": {"x"}, "x": {"libgcc-s1"}, "libgcc-s1": set()}
    assert set(group_packages(graph, TRIPLET).values()) == {"libc6"}
