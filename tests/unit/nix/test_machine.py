from __future__ import annotations

from itertools import pairwise

import pytest

from nixery.nix.machine import ADVISORIES, Release


def names(answer: str) -> str:
    found = Release.parse(answer)
    assert found is not None
    return " ".join(advisory.name for advisory in found.advisories)


@pytest.mark.parametrize(
    ("answer", "program", "version"),
    [
        ("nix-store (Nix) 2.8.0\n", "Nix", "2.8.0"),
        ("nix-store (Nix) 2.26.3+dfsg\n", "Nix", "2.26.3"),
        ("nix-store (Nix) 2.35pre20260101_abcdef\n", "Nix", "2.35"),
        ("nix-store (Lix, like Nix) 2.93.1\n", "Lix", "2.93.1"),
        ("git version 2.39.5\n", "git", "2.39.5"),
        ("git version 2.39.5 (Apple Git-154)\n", "git", "2.39.5"),
    ],
)
def test_the_version_output_of_each_program_is_parsed(answer: str, program: str, version: str) -> None:
    found = Release.parse(answer)
    assert found is not None
    assert (found.program, found.version) == (program, version)


def test_output_without_a_version_gives_no_release() -> None:
    assert Release.parse("command not found\n") is None


@pytest.mark.parametrize(
    ("version", "concerned"),
    [
        ("2.3.17", True),
        ("2.3.18", False),
        ("2.8.0", True),
        ("2.18.1", True),
        ("2.18.2", False),
        ("2.20.4", True),
        ("2.20.5", False),
        ("2.21.0", False),
    ],
)
def test_each_release_line_has_its_own_fix(version: str, *, concerned: bool) -> None:
    assert ("CVE-2024-27297" in names(f"nix (Nix) {version}")) == concerned


def test_a_version_before_a_flaw_was_introduced_is_not_affected() -> None:
    assert "CVE-2024-45593" not in names("nix (Nix) 2.23.4")
    assert "CVE-2024-45593" in names("nix (Nix) 2.24.5")
    assert "CVE-2024-45593" not in names("nix (Nix) 2.24.6")
    assert "CVE-2026-44028" not in names("nix (Lix, like Nix) 2.92.3")
    # A release line that was abandoned before the flaw was found was never fixed.
    assert "CVE-2025-46416" in names("nix (Nix) 2.25.5")


@pytest.mark.parametrize(
    "answer", ["nix (Nix) 2.34.7", "nix (Nix) 2.35.0", "nix (Lix, like Nix) 2.95.2", "git version 2.50.1"]
)
def test_a_fixed_release_has_no_warning(answer: str) -> None:
    found = Release.parse(answer)
    assert found is not None
    assert not found.warning


def test_the_git_of_debian_12_is_safe_and_older_ones_are_not() -> None:
    assert not names("git version 2.39.5")
    assert "CVE-2024-32002" in names("git version 2.39.2")
    assert "CVE-2023-22490" in names("git version 2.39.1")
    assert "CVE-2022-39253" in names("git version 2.30.2")


def test_a_warning_names_program_version_and_advisory() -> None:
    found = Release.parse("nix-store (Nix) 2.34.6")
    assert found is not None
    assert found.warning.startswith(
        "Nix 2.34.6 has known flaws unless its distribution fixed them: CVE-2026-44028 ("
    )


def test_the_fixed_releases_of_an_advisory_are_sorted() -> None:
    for advisories in ADVISORIES.values():
        for advisory in advisories:
            assert all(earlier[:2] < later[:2] for earlier, later in pairwise(advisory.fixed)), advisory.name
