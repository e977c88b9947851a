"""Resolution of dependencies to packages."""

import pytest
from locking.index import Package, parse_index
from locking.resolving import Resolver, Term, parse_clause


def package(name: str, version: str = "1", *, depends: str = "", provides: str = "") -> Package:
    stanza = (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSHA256: 00\n"
        f"Depends: {depends}\nProvides: {provides}"
    )
    (found,) = parse_index([stanza], "amd64")
    return found


def resolve(clause: str, *packages: Package) -> str | None:
    return Resolver({each.name: each for each in packages}).resolve(clause)


def test_a_clause_is_parsed_with_versions_and_architecture_qualifiers() -> None:
    assert parse_clause("perl:any (>= 5.36) | b [amd64]") == (Term("perl", ">=", "5.36"), Term("b", "", ""))


def test_the_first_alternative_that_can_be_met_wins() -> None:
    assert resolve("missing | b | a", package("a"), package("b")) == "b"


def test_a_version_that_is_too_old_does_not_meet_the_clause() -> None:
    assert resolve("a (>= 2)", package("a", "1.9")) is None
    assert resolve("a (>= 2)", package("a", "2.0-1")) == "a"


def test_a_real_package_beats_one_that_provides_its_name() -> None:
    assert resolve("a", package("Z", provides="a"), package("a")) == "a"


def test_an_unversioned_provides_meets_no_versioned_clause() -> None:
    assert resolve("virtual", package("a", provides="virtual")) == "a"
    assert resolve("virtual (>= 1)", package("a", provides="virtual")) is None
    assert resolve("virtual (>= 1)", package("a", provides="virtual (= 2)")) == "a"


@pytest.mark.parametrize(("name", "expected"), [("hello", {"libc6"}), ("dpkg-dev", {"libc6", "dpkg"})])
def test_dependencies_of_maintainer_scripts_are_left_out(name: str, expected: set[str]) -> None:
    user = package(name, depends="libc6, dpkg (>= 1), debconf (>= 0.5) | debconf-2.0")
    others = [package("libc6"), package("dpkg")]
    names, unmet = Resolver({each.name: each for each in [user, *others]}).dependencies(user)
    assert names == expected
    assert unmet == (["debconf (>= 0.5) | debconf-2.0"] if name == "dpkg-dev" else [])


def test_an_unmet_clause_is_reported() -> None:
    user = package("user", depends="missing")
    assert Resolver({"user": user}).dependencies(user) == (set(), ["missing"])


def test_installed_packages_that_no_index_offers_and_other_architectures_are_skipped() -> None:
    installed = "Package: a\nVersion: 1\nArchitecture: amd64"
    foreign = "Package: b\nVersion: 1\nArchitecture: i386\nFilename: b.deb\nSHA256: 00"
    assert list(parse_index([installed, foreign, ""], "amd64")) == []


@pytest.mark.parametrize(
    ("depends", "expected"),
    [
        ("java-wrappers", {"java-wrappers", "default-jre-headless"}),
        ("jarwrapper", {"jarwrapper", "default-jre-headless"}),
        ("java-wrappers, default-jre | java8-runtime", {"java-wrappers", "default-jre"}),
        ("unzip", {"unzip"}),
    ],
)
def test_a_package_that_starts_java_has_a_runtime(depends: str, expected: set[str]) -> None:
    user = package("user", depends=depends)
    names = ("java-wrappers", "jarwrapper", "default-jre", "default-jre-headless", "unzip")
    packages = {each.name: each for each in (user, *map(package, names))}
    assert Resolver(packages).dependencies(user) == (expected, [])
