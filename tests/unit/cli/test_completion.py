"""Completion of names in the shell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixery.builds import index_records
from nixery.builds.index_records import Header, StateIndex
from nixery.builds.popularity import Basis
from nixery.cli import completion
from nixery.cli.completion import complete_basis, complete_name, complete_output, complete_platform


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STORAGE_PATH", str(tmp_path))
    directory = tmp_path / "records" / "packages" / "ab"
    directory.mkdir(parents=True)
    return directory


def keep(place: Path, *names: str) -> None:
    """Store the record of an index of which only the names are known."""
    header = Header(source="", revision="", created=None, rounds=[[((), list(names))]])
    place.write_bytes(StateIndex("", header).encoded())


def test_the_shortest_name_comes_first(records: Path) -> None:
    keep(records / "abc", "gitWeb", "git", "htop", "_1password", "_gita", "legit")
    assert complete_name("gi") == ["git", "gitweb"]
    assert complete_name("shell/htop/GI") == ["shell/htop/git", "shell/htop/gitweb"]
    assert complete_name("1p") == ["1password"]
    assert complete_name("s") == ["shell"]
    assert complete_name("shell/de") == ["shell/debug"]


def test_names_are_spelled_as_in_image_names(records: Path) -> None:
    keep(records / "abc", "libstdc++6", "libstdc")
    assert complete_name("libstd") == ["libstdc", "libstdc__2b__2b6"]


def test_the_mark_of_a_record_is_that_of_the_index() -> None:
    assert completion.HEADER == index_records.HEADER


@pytest.mark.parametrize(
    "content",
    [
        b'{"git":{"version":"1"}}',
        completion.HEADER,
        completion.HEADER + b"gi\xfft\ngit$(id)\n" + b"git" * 1000 + b"\n\n",
        completion.HEADER + b"htop\n\ngitless\n" + bytes(range(256)),
    ],
    ids=["older", "torn", "hostile", "names in the rest"],
)
def test_other_records_offer_no_names(records: Path, content: bytes) -> None:
    (records / "abc").write_bytes(content)
    assert complete_name("gi") == []


def test_a_record_of_an_older_version_does_not_hide_the_others(records: Path) -> None:
    keep(records / "abc", "git")
    os.utime(records / "abc", (1, 1))
    (records / "abd").write_bytes(b'{"gitless":{}}')
    os.mkfifo(records / "abe")
    assert complete_name("gi") == ["git"]


def test_a_long_list_is_read_in_part(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(records / "abc", "gi", "git", "gitweb")
    monkeypatch.setattr(completion, "_LARGEST", len(completion.HEADER) + len("gi\ngit\ngitw"))
    assert complete_name("gi") == ["gi", "git"]


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
