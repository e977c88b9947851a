"""The spelling of attribute names in image names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.errors import InvalidName
from nixery.image.name import PREFIXES, validate_name
from nixery.image.spelling import RESERVED, AttributeNames, NearNames, missing_package


def spelled(names: Sequence[str], attribute: str) -> str | None:
    return AttributeNames({(): names}).spell([attribute])


def selected(names: Sequence[str], component: str) -> str | None:
    path = AttributeNames({(): names}).resolve(component)
    return path[0] if path else None


@pytest.mark.parametrize(
    ("attribute", "component"),
    [
        ("hello", "hello"),
        ("haskellPackages", "haskellpackages"),
        ("_1password", "1password"),
        ("python3.11", "python3.11"),
        ("Python3.11", "python3__2e11"),
        ("libstdc++6", "libstdc__2b__2b6"),
        ("g++-12", "g__2b__2b-12"),
        ("Foo+", "foo__2b"),
        ("@angular/cli", "x__40angular__2fcli"),
        ("x@angular", "x__40angular"),
        ("_leading", "x__5fleading"),
        ("trailing_", "trailing__5f"),
        ("a__b", "a__b"),
        ("a___b", "a__5f__5f__5fb"),
        ("a-_b", "a__2d__5fb"),
        ("b__2b", "b__2b"),
        ("~", "x__7e"),
        ("a b ", "a__20b__20"),
        # At the beginning of a name, `shell` is no package.
        ("shell", "x__73__68__65__6c__6c"),
    ],
)
def test_an_attribute_alone_has_a_short_spelling(attribute: str, component: str) -> None:
    assert spelled([attribute], attribute) == component
    assert selected([attribute], component) == attribute


@pytest.mark.parametrize(
    ("names", "spellings"),
    [
        (["exact", "Exact", "eXact"], ["exact", "x__45xact", "e__58act"]),
        (["FOO", "FoO"], ["foo", "x__46o__4f"]),
        (["Foo+", "fOO+"], ["foo__2b", "f__4f__4f__2b"]),
        (["1password", "_1password"], ["1password", "x__5f1password"]),
        (["a__2b", "a+"], ["a__2b", "x__61__2b"]),
        (["@angular", "x@angular"], ["x__40angular", "x__78__40__61__6e__67__75__6c__61__72"]),
        (["+", "x+"], ["x__2b", "x__78__2b"]),
        (["python3.11", "Python3.11"], ["python3.11", "x__50ython3__2e11"]),
    ],
)
def test_attributes_that_could_be_confused_have_different_spellings(
    names: list[str], spellings: list[str]
) -> None:
    for order in (names, names[::-1]):
        assert [spelled(order, name) for name in names] == spellings
        assert [selected(order, spelling) for spelling in spellings] == names


@pytest.mark.parametrize("attribute", ["caf\u00e9", "", "a\n", "\x7f", "a" * 256, "+" * 64, "\u212a"])
def test_some_attributes_have_no_spelling(attribute: str) -> None:
    assert spelled([attribute], attribute) is None


def test_case_folds_in_ascii_alone() -> None:
    # KELVIN SIGN, whose lower case in Unicode is `k`. Nix knows nothing about that.
    assert selected(["\u212a"], "k") is None


@pytest.mark.parametrize(
    ("names", "component"),
    [
        (["hello"], "h__65llo"),
        (["hello"], "x__68__65__6c__6c__6f"),
        (["haskellPackages"], "haskell__50ackages"),
        (["python3.11"], "python3__2e11"),
        (["a-b+"], "a__2db__2b"),
        (["Foo+"], "x__46oo__2b"),
        (["_1password"], "x__5f1password"),
        (["c+"], "c__2B"),
        (["a\x7f"], "a__7f"),
        (["a\x1f"], "a__1f"),
    ],
)
def test_an_attribute_has_one_spelling(names: list[str], component: str) -> None:
    """A client could make an image for each of endless spellings."""
    assert selected(names, component) is None


_SETS = {
    (): ["xorg", "python3", "python3.11", "python3Packages", "Nested+"],
    ("xorg",): ["libX11", "a.b", "shell"],
    ("python3",): ["11", "12"],
    ("python3Packages",): ["numpy", "NUMPY"],
    ("Nested+",): ["g++"],
}


@pytest.mark.parametrize(
    ("path", "component"),
    [
        (("xorg", "libX11"), "xorg.libx11"),
        (("xorg", "a.b"), "xorg.a__2eb"),
        (("xorg", "shell"), "xorg.shell"),
        (("python3Packages", "numpy"), "python3packages.numpy"),
        (("python3Packages", "NUMPY"), "python3packages.x__4e__55__4d__50__59"),
        (("Nested+", "g++"), "nested__2b.g__2b__2b"),
        (("python3.11",), "python3.11"),
        (("python3", "12"), "python3.12"),
    ],
)
def test_paths_into_sets(path: tuple[str, ...], component: str) -> None:
    names = AttributeNames(_SETS)
    assert names.spell(path) == component
    assert names.resolve(component) == path


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("ci", (RESERVED, "ci")),
        # An attribute of the set wins, whatever its case.
        ("debug", ("Debug",)),
        (".shell", (RESERVED, ".shell")),
        (".nosuch", None),
        ("ci.git", None),
        ("shell", None),
    ],
)
def test_meta_packages(component: str, path: tuple[str, ...] | None) -> None:
    names = AttributeNames({(): ["git", "Debug", ".nosuch"], (RESERVED,): [".shell", "ci", "debug"]})
    assert names.resolve(component) == path
    if path == (RESERVED, "ci"):
        assert names.spell(path) == component
    # No client can write these.
    assert names.spell((RESERVED, ".shell")) is None
    assert names.spell((RESERVED, "debug")) is None


@pytest.mark.parametrize("path", [(), ("nosuch",), ("xorg", "nosuch"), ("unknown", "set"), ("python3", "11")])
def test_paths_without_a_spelling(path: tuple[str, ...]) -> None:
    # `python3.11` is an attribute with a dot in its name.
    assert AttributeNames(_SETS).spell(path) is None


@pytest.mark.parametrize(
    "component", ["nosuch", "xorg.nosuch", "nosuch.numpy", "xorg.libx11.out", "xorg.a.b"]
)
def test_components_that_lead_nowhere(component: str) -> None:
    assert AttributeNames(_SETS).resolve(component) is None
    assert AttributeNames({}).resolve(component) is None
    assert AttributeNames({}).spell(()) is None


@pytest.mark.parametrize("component", ["\u00e9__2b", "x__2b\u00e9", "x__61\u00e9", "G__2b"])
def test_a_text_that_is_no_component_selects_nothing(component: str) -> None:
    names = ["\u00e9+", "+\u00e9", "a\u00e9", "G+", "g+"]
    assert AttributeNames({(): names}).resolve(component) is None


# Characters that could be confused, in names that are short enough to collide, and some of all kinds.
_CONFUSABLE = st.text("aAxX+@._-012b\u00e9 ", max_size=7)
_FRAGMENTS = st.lists(
    st.sampled_from(
        ["__2b", "__40", "__5f", "__2e", "__2d", "__41", "__61", "__78", "a", "x", "1", "_", "-", "."]
    ),
    min_size=1,
    max_size=6,
).map("".join)
_NAMES = st.lists(_CONFUSABLE | _FRAGMENTS | st.text(max_size=5), max_size=12)
_TREES = st.builds(
    lambda top, nested: {(): [*top, "x", "aX+"], ("x",): nested, ("aX+",): nested[::-1]}, _NAMES, _NAMES
)


@given(_TREES)
def test_a_spelling_selects_its_attribute(sets: dict[tuple[str, ...], list[str]]) -> None:
    names = AttributeNames(sets)
    found: dict[str, tuple[str, ...]] = {}
    for path in {(*within, name) for within, attributes in sets.items() for name in attributes}:
        component = names.spell(path)
        if component is not None:
            validate_name(component)
            assert "/" not in component
            assert names.resolve(component) == path
            assert found.setdefault(component, path) == path


@given(_NAMES, _FRAGMENTS | _CONFUSABLE)
def test_a_package_has_one_name(attributes: list[str], component: str) -> None:
    names = AttributeNames({(): attributes})
    try:
        validate_name(component)
    except InvalidName:
        return
    path = names.resolve(component)
    if path is not None and component not in PREFIXES:
        assert names.spell(path) == component


@given(st.lists(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=12)))
def test_every_character_can_be_written(attributes: list[str]) -> None:
    """Without attributes that look like escapes, each name of printable ASCII has a spelling."""
    attributes = [name for name in attributes if not re.search(r"__[0-9a-f]{2}", name)]
    names = AttributeNames({(): attributes})
    assert all(names.spell([name]) for name in attributes)


def near_names(wanted: str, within: str, attributes: Sequence[str]) -> tuple[str, ...]:
    return NearNames(within, attributes).of(wanted)


def test_the_most_similar_come_first() -> None:
    assert near_names("htpo", "", ["http", "htop", "zsh"])[0] == "htop"


def test_exchanged_letters_come_before_other_letters() -> None:
    assert NearNames("", ["bti", "git", "gri"]).of("gti")[0] == "git"


def test_a_word_of_a_longer_name_comes_before_other_letters() -> None:
    names = ["snimpy", "python3-numpy-doc", "python3-numpy", "numpysome"]
    assert near_names("numpy", "", names) == ("python3-numpy", "python3-numpy-doc", "snimpy")
    # After one wrong letter, which is a mistake.
    assert near_names("gti", "", ["xfce-gti", "git"]) == ("git", "xfce-gti")


def test_names_with_a_leading_dot_are_no_hint() -> None:
    assert near_names("shel", "", [".shell", "shelr"]) == ("shelr",)


def test_a_prefix_behind_a_package_has_an_explanation_in_place_of_near_names() -> None:
    assert near_names("shell", "", ["shelr"]) == ()
    assert (
        str(missing_package("shell")) == "shell (missing: shell is the first part of a name, as in shell/git)"
    )
    assert str(missing_package("htpo", ("htop",))) == "htpo (missing; did you mean htop?)"


def test_without_similar_names_there_is_no_hint() -> None:
    assert near_names("qqqqqqqq", "", ["htop", "zsh"]) == ()


def test_near_names_have_the_form_that_clients_use() -> None:
    assert near_names("1pasword", "", ["_1password"]) == ("1password",)
    assert near_names("haskelpackages", "", ["haskellPackages"]) == ("haskellpackages",)
    assert near_names("g__2b", "", ["g++"]) == ("g__2b__2b",)
    assert near_names("cafe", "", ["caf\u00e9"]) == ()


def test_names_are_similar_as_people_read_them() -> None:
    # `libstdc__2b__2b6` has little in common with that.
    assert near_names("libstdc", "", ["libstdc++6", "libc"]) == ("libstdc__2b__2b6",)
    assert near_names("haskell__50ackages", "", ["haskellPackages"]) == ("haskellpackages",)


def test_names_inside_a_set_carry_its_path() -> None:
    assert near_names("pythonpackages.reqests", "pythonpackages", ["requests", "Requests", "Request+"]) == (
        "pythonpackages.requests",
        "pythonpackages.x__52equests",
        "pythonpackages.request__2b",
    )


def test_the_order_of_attributes_changes_nothing() -> None:
    names = ["aab", "aac", "aad", "aae", "aaf"]
    assert near_names("aaa", "", names) == near_names("aaa", "", names[::-1])


def test_near_names_of_a_large_set_with_long_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another algorithm would hold the interpreter's lock for seconds for a set with tens of thousands of long
    # names.
    scorers = []
    extract = process.extract

    def observed(*arguments: Any, **options: Any) -> object:  # noqa: ANN401 -- any argument
        scorers.append(options["scorer"])
        return extract(*arguments, **options)

    monkeypatch.setattr(process, "extract", observed)
    near_names("htpo", "", ["htop"])
    assert scorers == [OSA.normalized_similarity]
