"""Searching a package set: ranking, words, programs, similar names, and hostile text."""

from __future__ import annotations

import pytest

from nixery.builds.package_search import FoundPackage, PackageSearch

SEARCH = PackageSearch(
    [
        FoundPackage("git", "git", "2.39.5", "Distributed version control", ("git", "git-shell")),
        FoundPackage("gitk", "gitk"),
        FoundPackage("gitminimal", "gitMinimal", "2.39.5", alias_of="git"),
        FoundPackage("legit", "legit"),
        FoundPackage("python3", "python3", "3.11", "High-level language", ("python3", "pydoc3")),
        FoundPackage("python3-pip", "python3-pip", description="Installs Python packages"),
        FoundPackage(
            "python3packages.numpy", "python3Packages.numpy", "1.26", "Arrays of numbers for Python"
        ),
        FoundPackage("1password", "_1password", reason="unfree"),
        FoundPackage("g__2b__2b", "g++", description="GNU C++ compiler"),
        FoundPackage("jq", "jq", "1.7", "Command-line JSON processor", ("jq",)),
        FoundPackage("yajl", "yajl", description="A JSON library, and a processor of it"),
        FoundPackage("postgresql-client-17", "postgresql-client-17", programs=("psql", "pg_dump")),
        FoundPackage("postgresql", "postgresql", programs=("psql", "postgres")),
        FoundPackage("psqlodbc", "psqlodbc", description="A driver for databases"),
        FoundPackage("latin", "latin", description="caf\ufffd \x1b[31m <script>alert(1)</script>"),
    ]
)


def found(text: str, limit: int = 10) -> list[str]:
    return [package.name for package in SEARCH.search(text, limit)]


def test_names_that_begin_with_the_text_come_first_the_shortest_before_others() -> None:
    assert found("git") == ["git", "gitk", "gitminimal", "legit"]
    assert found(" GIT ", 2) == ["git", "gitk"]


def test_any_part_of_a_name_is_found() -> None:
    assert found("pip") == ["python3-pip"]
    assert found("numpy") == ["python3packages.numpy"]
    assert found("packages.nu") == ["python3packages.numpy"]


def test_the_package_with_a_program_comes_before_names_that_begin_with_the_text() -> None:
    assert found("psql") == ["postgresql", "postgresql-client-17", "psqlodbc"]
    assert found("PG_DUMP") == ["postgresql-client-17"]


def test_a_package_comes_before_its_alias_with_the_same_program() -> None:
    packages = [FoundPackage("pq", "pq", programs=("psql",), alias_of="libpq")]
    search = PackageSearch([*packages, FoundPackage("libpq", "libpq", programs=("psql",))])
    assert [package.name for package in search.search("psql", 2)] == ["libpq", "pq"]


def test_a_name_comes_before_a_program() -> None:
    search = PackageSearch([FoundPackage("a", "a", programs=("tool",)), FoundPackage("tool", "tool")])
    assert [package.name for package in search.search("tool", 2)] == ["tool", "a"]


def test_all_words_have_to_be_in_name_programs_or_description_in_any_order() -> None:
    assert found("json processor") == found("processor json") == ["jq", "yajl"]
    assert found("the json processor of a command-line") == ["jq"]
    assert found("json nothing") == []


def test_what_is_called_so_comes_before_what_is_described_so() -> None:
    search = PackageSearch(
        [
            FoundPackage("pfm", "pfm", description="A PostgreSQL client with windows"),
            FoundPackage("postgresql-client-17", "postgresql-client-17", description="Programs"),
        ]
    )
    found = [package.name for package in search.search("postgresql client", 2)]
    assert found == ["postgresql-client-17", "pfm"]


def test_the_last_word_may_be_incomplete() -> None:
    assert found("json proc") == ["jq", "yajl"]
    assert found("proc json") == []


def test_common_words_alone_find_nothing() -> None:
    assert found("of the") == []


def test_words_of_names_with_capitals_and_signs_are_found() -> None:
    assert found("c++") == ["g__2b__2b"]


def test_an_empty_text_finds_the_shortest_names() -> None:
    assert found("", 3) == ["jq", "git", "gitk"]
    assert found("git", 0) == found("git", -1) == []


@pytest.mark.parametrize("text", ["git\ngitk", "git\x00", "\x1b[31m", "\u202egit", "\ud800", "g\ti\tt"])
def test_unprintable_text_finds_nothing(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text", ["[", "(.*)+$", "\\", "%", "git' OR 1=1", "é" * 100, "a " * 5000, "x" * 100_000, "ß", "\x7f"]
)
def test_hostile_text_is_only_text(text: str) -> None:
    assert found(text) == []


def test_more_words_than_the_limit_are_ignored() -> None:
    assert found("json command line processor jq " + " ".join(f"json{n}" for n in range(50))) == []
    assert found("command-line json processor jq c co com comm nothing") == []
    assert found(" ".join(["json"] + [f"nothing{n}" for n in range(50)])) == []


def test_a_package_is_returned_once() -> None:
    search = PackageSearch([FoundPackage("tool", "tool", "1", "tool of tools", ("tool", "tool", "toolbox"))])
    assert [package.name for package in search.search("tool", 10)] == ["tool"]


def test_aliases_and_reasons_are_part_of_the_answer() -> None:
    package = SEARCH.get("gitminimal")
    assert package is not None
    assert (package.attribute, package.alias_of, package.version) == ("gitMinimal", "git", "2.39.5")
    (refused,) = SEARCH.search("1pass", 1)
    assert refused.reason == "unfree"
    assert SEARCH.get("nothing") is SEARCH.get("") is SEARCH.get("git\ngitk") is None


def test_all_packages_are_listed_by_length_and_name() -> None:
    names = [package.name for package in SEARCH]
    assert names == sorted(names, key=lambda name: (len(name), name))
    assert len(SEARCH) == len(names) == 15


def test_an_empty_set_is_searched() -> None:
    search = PackageSearch([])
    assert (len(search), list(search.search("", 5)), list(search.search("git", 5))) == (0, [], [])


def test_a_large_set_is_searched_the_same_way() -> None:
    large = PackageSearch(FoundPackage(f"lib{n}", f"lib{n}") for n in range(5000))
    assert [package.name for package in large.search("lib", 3)] == ["lib0", "lib1", "lib2"]
    assert [package.name for package in large.search("lib499", 3)] == ["lib499", "lib4990", "lib4991"]
    assert [package.name for package in large.search("999", 2)] == ["lib999", "lib1999"]


def test_a_word_that_all_descriptions_have_finds_as_many_as_asked_for() -> None:
    large = PackageSearch(FoundPackage(f"p{n}", f"p{n}", description="common library") for n in range(5000))
    assert [package.name for package in large.search("library common", 3)] == ["p0", "p1", "p2"]
    assert len(large.search("lib", 100)) == 100
