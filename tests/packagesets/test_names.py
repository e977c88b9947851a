"""Names for the Nix store, and the nixpkgs names that point to Debian's."""

import re

import pytest
from locking.aliases import main_program, resolve_aliases
from locking.index import Package
from locking.names import store_name, store_version


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1:9.2p1-2", "9.2p1-2"), ("1.0~rc1", "1.0-rc1"), ("2.10-3", "2.10-3"), ("1.0+b1", "1.0+b1")],
)
def test_versions(version: str, expected: str) -> None:
    assert store_version(version) == expected


@pytest.mark.parametrize(("name", "version"), [("g++", "4:12"), ("a" * 300, "1"), (".hidden", "1~2:3")])
def test_names_are_valid_in_nix(name: str, version: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,210}", store_name(name, version))


def test_aliases_take_the_highest_version_and_skip_missing_packages() -> None:
    aliases = resolve_aliases(
        ["bash", "golang-go", "openjdk-8-jdk-headless", "openjdk-17-jdk-headless", "zsh"]
    )
    assert aliases["jdk"] == "openjdk-17-jdk-headless"
    assert aliases["bashInteractive"] == "bash"
    assert "cacert" not in aliases
    assert "zsh" not in aliases, "a name that is Debian's own is no alias"


def test_pkg_config_is_the_package_that_has_a_program_of_this_name() -> None:
    assert resolve_aliases(["pkgconf", "pkgconf-bin"])["pkg-config"] == "pkgconf"


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("ripgrep", "utils", "rg"),
        ("hello", "devel", "hello"),
        ("libc6", "libs", None),
        ("gcc-14", "devel", "gcc"),
    ],
)
def test_main_programs(name: str, section: str, expected: str | None) -> None:
    package = Package(name, "1", name, section, "", "", "f", "0", (), ())
    assert main_program(package) == expected
