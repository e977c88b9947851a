"""Completion of names in the shell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixery.builds.packages import LISTED
from nixery.builds.popularity import Basis
from nixery.cli.completion import complete_basis, complete_name, complete_output, complete_platform
from nixery.nix.packages import Details

# Texts that look like members.
AWKWARD = 'x,"gitk":{"'


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STORAGE_PATH", str(tmp_path))
    directory = tmp_path / "records" / "packages" / "ab"
    directory.mkdir(parents=True)
    return directory


def keep(place: Path, *names: str) -> None:
    place.write_bytes(LISTED.dump_json({name: Details("1,", AWKWARD) for name in names}))


def test_the_shortest_name_comes_first(records: Path) -> None:
    keep(records / "abc", "gitWeb", "git", "htop", "_1password", "_gita", "legit")
    assert complete_name("gi") == ["git", "gitweb"]
    assert complete_name("shell/htop/GI") == ["shell/htop/git", "shell/htop/gitweb"]
    assert complete_name("1p") == ["1password"]
    assert complete_name("s") == ["shell"]


def test_the_number_of_names_is_bounded(records: Path) -> None:
    keep(records / "abc", *(f"python3-{n:05}" for n in range(3000)))
    assert len(complete_name("py")) == 500


def test_the_latest_list_is_used(records: Path) -> None:
    keep(records / "abc", "git")
    keep(records / "abd", "gist")
    os.utime(records / "abd", (1, 1))
    assert complete_name("gi") == ["git"]


@pytest.mark.parametrize("typed", ["", "shell/", "(", "/etc/pa", ".*", "a b", "x" * 100_000])
def test_an_invalid_name_gets_no_completions(records: Path, typed: str) -> None:
    keep(records / "abc", "git")
    assert complete_name(typed) == []


def test_without_a_list_there_are_no_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_PATH", str(tmp_path / "none"))
    assert complete_name("gi") == []


def test_values_of_options_are_completed() -> None:
    assert complete_platform("linux/a") == ["linux/amd64", "linux/arm64"]
    assert complete_output("oci") == ["oci:", "oci-archive:"]
    assert complete_basis("") == list(Basis)
    assert complete_basis("c") == ["closures"]
