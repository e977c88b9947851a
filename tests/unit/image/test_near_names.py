from collections.abc import Sequence

from nixery.image.near_names import NearNames


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
