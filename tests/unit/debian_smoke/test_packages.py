from __future__ import annotations

from pathlib import Path

import pytest

from scripts.debian_smoke.packages import BEST_KNOWN, ListError, Package, part, read_packages
from scripts.debian_smoke.reasons import read_reasons
from scripts.debian_smoke.selection import COUNT, Offer, choose, main_program, read_well_known


def test_the_committed_list_is_complete_and_begins_with_the_best_known() -> None:
    packages = read_packages()
    assert len(packages) == COUNT
    assert [package.name for package in packages[:BEST_KNOWN]] == list(read_well_known())[:BEST_KNOWN]


def test_reasons_are_of_packages_of_the_list() -> None:
    assert read_reasons().keys() <= {package.name for package in read_packages()}
    assert all(reason.users and reason.users <= {"root", "plain"} for reason in read_reasons().values())


@pytest.mark.parametrize(
    ("line", "message"), [("jq", "not a package"), ("jq jq x", "not a package"), ("git git", "two lines")]
)
def test_a_malformed_list_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"# names\ngit git\n{line}\n")
    with pytest.raises(ListError, match=rf"list\.txt:3: .*{message}"):
        read_packages(file)


@pytest.mark.parametrize(("count", "parts"), [(400, 10), (7, 3), (2, 5)])
def test_parts_are_the_whole_list(count: int, parts: int) -> None:
    packages = [Package(f"p{number}", "p") for number in range(count)]
    joined = [p for number in range(parts) for p in part(packages, f"{number + 1}/{parts}")]
    assert joined == packages


@pytest.mark.parametrize("which", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", ""])
def test_a_part_that_does_not_exist_is_refused(which: str) -> None:
    with pytest.raises(ListError, match="2/10"):
        part([], which)


def offer(dependents: dict[str, int], **programs: list[str]) -> Offer:
    return Offer(
        programs=programs,
        main=dict.fromkeys(programs, ""),
        group_programs={name: frozenset(of) for name, of in programs.items()},
        sections={"libthing": "libs"},
        dependents=dependents,
    )


def test_well_known_packages_are_first_and_dependents_fill_the_list() -> None:
    found = offer({"a": 1, "b": 9, "c": 5, "libthing": 99}, a=["a"], b=["b"], c=["c"], libthing=["thing"])
    chosen = choose(found, {"c": None, "meta": "tool"}, count=3)
    assert chosen == [Package("c", "c"), Package("meta", "tool"), Package("b", "b")]


@pytest.mark.parametrize(
    ("name", "programs", "expected"),
    [
        ("python3-thing", ["athing", "thing", "thing-config"], "thing"),
        ("other", ["beta", "gamma"], "beta"),
        ("helper", ["dh_helper"], None),
        ("x11-common", ["X11"], None),
    ],
)
def test_a_main_program_is_like_the_name_of_its_package(
    name: str, programs: list[str], expected: str | None
) -> None:
    assert main_program(name, offer({}, **{name: programs})) == expected


def test_the_package_set_names_the_main_program() -> None:
    found = Offer(
        programs={"python3": ["pdb3"]},
        main={"python3": "python3"},
        group_programs={"python3": frozenset({"pdb3", "python3"})},
        sections={},
        dependents={},
    )
    assert main_program("python3", found) == "python3"
