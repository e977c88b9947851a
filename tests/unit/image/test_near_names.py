from collections.abc import Sequence
from typing import Any

import pytest
from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.image.name import NearNames


def near_names(wanted: str, within: str, attributes: Sequence[str]) -> tuple[str, ...]:
    return NearNames(within, attributes).of(wanted)


def test_the_most_similar_come_first() -> None:
    assert near_names("htpo", "", ["http", "htop", "zsh"])[0] == "htop"


def test_nothing_similar_is_no_hint() -> None:
    assert near_names("qqqqqqqq", "", ["htop", "zsh"]) == ()


def test_names_are_given_as_a_client_can_write_them() -> None:
    assert near_names("1pasword", "", ["_1password"]) == ("1password",)
    assert near_names("haskelpackages", "", ["haskellPackages"]) == ("haskellpackages",)
    assert near_names("g+", "", ["g++"]) == ()


def test_names_inside_a_set_carry_its_path_and_keep_their_case() -> None:
    assert near_names("pythonpackages.reqests", "pythonPackages", ["requests", "Requests"]) == (
        "pythonpackages.requests",
    )


def test_the_order_of_attributes_changes_nothing() -> None:
    names = ["aab", "aac", "aad", "aae", "aaf"]
    assert near_names("aaa", "", names) == near_names("aaa", "", names[::-1])


def test_a_scorer_that_is_linear_in_the_length_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other one would keep the interpreter's lock for seconds, if an author has given a set tens of thousands of long names.
    scorers = []
    extract = process.extract

    def observed(*arguments: Any, **options: Any) -> object:  # noqa: ANN401 -- whatever it is given
        scorers.append(options["scorer"])
        return extract(*arguments, **options)

    monkeypatch.setattr(process, "extract", observed)
    near_names("htpo", "", ["htop"])
    assert scorers == [OSA.normalized_similarity]
