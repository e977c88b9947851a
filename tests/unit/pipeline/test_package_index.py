from __future__ import annotations

from nixery.nix.builder import Details
from nixery.pipeline.package_index import PackageNames

SET = [
    "git",
    "gitk",
    "gitMinimal",
    "legit",
    "python3",
    "python3-pip",
    "_1password",
    "g++",
    "nested set",
    "-x",
    "Git",
]
NAMES = PackageNames({name: Details("1.0", f"about {name}") for name in SET})


def found(text: str, limit: int = 10) -> list[str]:
    return [package.name for package in NAMES.search(text, limit)]


def test_what_begins_with_the_text_comes_first() -> None:
    assert found("git") == ["git", "gitk", "gitminimal", "legit"]
    assert found("GIT", 2) == ["git", "gitk"]


def test_what_has_the_text_in_it_is_found() -> None:
    assert found("pip") == ["python3-pip"]


def test_what_is_similar_is_found_where_nothing_else_is() -> None:
    assert found("gti") == ["git"]
    assert found("pyhton3")[0] == "python3"
    assert found("zz") == []


def test_names_are_those_of_requests() -> None:
    assert found("1pass") == ["1password"]
    assert found("g+") == found("nested") == []
    assert len(NAMES) == 7


def test_all_names_the_shortest_first() -> None:
    assert found("", 3) == ["git", "gitk", "legit"]
    assert found("git", 0) == []


def test_line_breaks_are_in_no_name() -> None:
    assert found("git\ngitk") == []


def test_one_package() -> None:
    package = NAMES.get("gitk")
    assert package is not None
    assert (package.version, package.description) == ("1.0", "about gitk")
    assert NAMES.get("nothing") is None


def test_a_large_set_is_searched_the_same_way() -> None:
    large = PackageNames({f"lib{n}": Details() for n in range(5000)})
    assert [package.name for package in large.search("lib", 3)] == ["lib0", "lib1", "lib2"]
    assert [package.name for package in large.search("lib499", 3)] == ["lib499", "lib4990", "lib4991"]
    assert [package.name for package in large.search("999", 2)] == ["lib999", "lib1999"]
