"""Evaluating a package set attribute by attribute, with programs that stand in for Nix."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from nixery.errors import AnswerTooLarge, EvaluationFailed, NixTimedOut, NixUnusable
from nixery.image.platform import AMD64
from nixery.nix.indexing import IndexEvaluation, Reported, parse_entry
from nixery.nix.options import NixOptions
from nixery.nix.packages import NixFiles
from tests.support.nix import install_fake_nix

# The mark of the request, which a package set does not know.
MARK = """mark=$(printf '%s' "$*" | sed 's/.*"mark": "\\([0-9a-f]*\\)".*/\\1/')
entry() { echo "trace: $mark {\\"path\\":[\\"$1\\"]}" >&2; }
count=$(($(cat "$COUNT" 2>/dev/null || echo 0) + 1)); echo $count > "$COUNT"
echo "$*" >> "$COUNT.calls"
"""


def evaluation(directory: Path, script: str, seconds: float = 30) -> IndexEvaluation:
    count = directory / "count"
    environment: Mapping[str, str] = {
        **install_fake_nix(directory / "bin", f"COUNT={shlex.quote(str(count))}\n{MARK}{script}")
    }
    options = NixOptions(environment=environment, fetching=environment, building=environment)
    return IndexEvaluation(
        AMD64, NixFiles(Path("/srv/set"), self_contained=False), options, 10, attribute_timeout=seconds
    )


def calls(directory: Path) -> int:
    return int((directory / "count").read_text())


async def described(one: IndexEvaluation, *names: str, failures: int = 10) -> list[tuple[str, bool, str]]:
    found: list[Reported] = []
    await one.describe([(name,) for name in names], found.append, failures)
    return [(each.path[0], each.entry is not None, each.error) for each in found]


async def test_every_attribute_is_reported_by_one_process(tmp_path: Path) -> None:
    one = evaluation(tmp_path, "entry a; entry b")
    assert await described(one, "a", "b") == [("a", True, ""), ("b", True, "")]
    assert calls(tmp_path) == 1


async def test_the_next_process_continues_after_the_attribute_that_failed(tmp_path: Path) -> None:
    script = """case $count in
    1) entry a; echo "error: b is broken" >&2; exit 1 ;;
    2) entry c ;;
    esac"""
    assert await described(evaluation(tmp_path, script), "a", "b", "c") == [
        ("a", True, ""),
        ("b", False, "b is broken"),
        ("c", True, ""),
    ]
    assert calls(tmp_path) == 2


async def test_what_others_may_have_exhausted_is_tried_again_alone(tmp_path: Path) -> None:
    script = """case $count in
    1) entry a; echo "error: stack overflow (possible infinite recursion)" >&2; exit 1 ;;
    2) entry b; entry c ;;
    esac"""
    found = await described(evaluation(tmp_path, script), "a", "b", "c")
    assert [ok for _, ok, _ in found] == [True] * 3
    assert calls(tmp_path) == 2


@pytest.mark.parametrize(
    "words", ["No space left on device", "Permission denied", "cannot connect to daemon"]
)
async def test_an_attribute_with_the_words_of_a_machine_error_costs_itself_alone(
    tmp_path: Path, words: str
) -> None:
    script = f"""case "$*" in *'"sets"'*) echo '[["a", "b"]]'; exit ;; esac
    case "$*" in *'"a"'*) entry a ;; esac
    case "$*" in *'"b"'*) echo "error: aborted: {words}" >&2; exit 1 ;; esac
    entry c"""
    found = await described(evaluation(tmp_path, script), "a", "b", "c")
    assert found == [("a", True, ""), ("b", False, f"aborted: {words}"), ("c", True, "")]


async def test_an_error_of_this_machine_ends_the_evaluation(tmp_path: Path) -> None:
    one = evaluation(tmp_path, 'echo "error: writing to file: No space left on device" >&2; exit 1')
    with pytest.raises(NixUnusable, match="No space left on device"):
        await described(one, "a")


async def test_a_broken_package_set_ends_the_evaluation(tmp_path: Path) -> None:
    one = evaluation(tmp_path, 'echo "error: syntax error, at /srv/set/default.nix:1" >&2; exit 1')
    with pytest.raises(EvaluationFailed, match="syntax error") as raised:
        await described(one, "a", "b")
    assert "/srv" not in str(raised.value)


@pytest.mark.parametrize("ending", ["exit 1", "kill -9 $$"])
async def test_no_reason_has_a_path_of_the_server(tmp_path: Path, ending: str) -> None:
    script = f"""case "$*" in *'"sets"'*) echo '[[]]'; exit ;; esac
    echo "error: cannot read /srv/set/secret.nix" >&2; {ending}"""
    found = await described(evaluation(tmp_path, script), "a")
    assert found == [("a", False, "cannot read …")]


async def test_a_process_that_is_killed_ran_out_of_memory(tmp_path: Path) -> None:
    script = """case "$*" in *'"sets"'*) echo '[[]]'; exit ;; esac
    kill -9 $$"""
    ((_, _, error),) = await described(evaluation(tmp_path, script), "a")
    assert error == "out of memory: the evaluation was ended by signal 9"


async def test_an_attribute_that_never_ends_costs_itself_alone(tmp_path: Path) -> None:
    script = """case $count in
    1) entry a; exec sleep 60 ;;
    *) entry c ;;
    esac"""
    found = await described(evaluation(tmp_path, script, seconds=3), "a", "b", "c")
    assert found == [("a", True, ""), ("b", False, "evaluation timed out after 3 s"), ("c", True, "")]


async def test_lines_without_the_mark_are_not_of_the_index(tmp_path: Path) -> None:
    script = """echo "trace: 0123456789abcdef0123456789abcdef {}" >&2
    echo "$mark {}" >&2
    echo "trace:  $mark {}" >&2
    entry a"""
    found: list[Reported] = []
    await evaluation(tmp_path, script).describe([("a",)], found.append, 10)
    assert found == [Reported(("a",), b'{"path":["a"]}')]


async def test_more_lines_than_attributes_are_ignored(tmp_path: Path) -> None:
    assert await described(evaluation(tmp_path, "entry a; entry a; entry a"), "a") == [("a", True, "")]


async def test_a_long_line_is_left_to_an_evaluation(tmp_path: Path) -> None:
    script = """printf 'trace: %s %070000d\\n' "$mark" 0 >&2; entry b"""
    found: list[Reported] = []
    await evaluation(tmp_path, script).describe([("a",), ("b",)], found.append, 10)
    assert [each.entry for each in found] == [b"", b'{"path":["b"]}']


async def test_paths_are_cut_into_arguments(tmp_path: Path) -> None:
    names = [f"{number:03}{'x' * 250}" for number in range(600)]
    script = """for i in $(seq $(printf '%s' "$*" | grep -o xxxxxxxxxx\\" | wc -l)); do entry a; done"""
    found = await described(evaluation(tmp_path, script), *names)
    assert [ok for _, ok, _ in found] == [True] * 600
    assert calls(tmp_path) == 2


async def test_failures_are_bounded(tmp_path: Path) -> None:
    script = """case "$*" in *'"sets"'*) echo '[[]]'; exit ;; esac
    echo "error: broken" >&2; exit 1"""
    found = await described(evaluation(tmp_path, script), "a", "b", "c", failures=2)
    assert [error for _, _, error in found][:2] == ["broken"] * 2
    assert found[2][2].startswith("not evaluated")


@pytest.mark.parametrize("answer", ["", "nothing", "{}", '[["a"], ["b"]]', "[[1]]", "[" * 10_000])
async def test_an_answer_that_is_no_list_of_names_is_an_error_of_nix(tmp_path: Path, answer: str) -> None:
    one = evaluation(tmp_path, f"printf '%s' {shlex.quote(answer)}")
    with pytest.raises(NixUnusable):
        await one.names([()])


async def test_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.nix.indexing._LARGEST_NAMES", 1000)
    one = evaluation(tmp_path, "printf '%02000d' 0")
    with pytest.raises(AnswerTooLarge, match="the list of the package set is too large"):
        await one.names([()])


async def test_a_list_of_names_times_out(tmp_path: Path) -> None:
    one = evaluation(tmp_path, "exec sleep 60")
    one._timeout = 0.2
    with pytest.raises(NixTimedOut):
        await one.names([()])


# ---- Entries


def test_an_entry_about_another_path_says_nothing() -> None:
    line = {"path": ["b"], "kind": "set", "recurse": True, "items": [], "about": None}
    assert parse_entry(("b",), json.dumps(line).encode()).recurse
    assert parse_entry(("a",), json.dumps(line).encode()).kind == "other"


@pytest.mark.parametrize(
    "entry",
    [b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"path": ["a"], "kind": "new"}', b'{"path": "a"}'],
)
def test_an_entry_that_is_none_says_nothing(entry: bytes) -> None:
    attribute = parse_entry(("a",), entry)
    assert (attribute.kind, attribute.items) == ("other", None)


def test_an_entry_that_was_too_long_is_a_package_of_which_nothing_is_known() -> None:
    attribute = parse_entry(("a",), b"")
    assert (attribute.kind, attribute.items) == ("package", None)
