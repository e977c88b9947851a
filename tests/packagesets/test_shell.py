"""Maintainer scripts are read without being run: which commands one calls at the first installation."""

import pytest
from building.shell import TEMPORARY, commands


def called(script: str) -> list[tuple[str | None, ...]]:
    return [command for command in commands(script) if command[0] not in ("[", "test", "true")]


def test_loops_over_words_and_variables() -> None:
    script = 'tools="convert identify"\nfor i in $tools display; do\n  alt --install /usr/bin/$i $i "/usr/bin/${i}-im6" 10\ndone\n'
    assert called(script) == [
        ("alt", "--install", f"/usr/bin/{name}", name, f"/usr/bin/{name}-im6", "10")
        for name in ("convert", "identify", "display")
    ]


def test_functions_get_their_arguments() -> None:
    script = 'add () {\n local name=$1; shift\n alt "$name" "$@"\n}\nadd vi a "b c"\nadd ex\n'
    assert called(script) == [("alt", "vi", "a", "b c"), ("alt", "ex")]


def test_continuation_lines_comments_and_here_documents() -> None:
    script = "alt a \\\n  b # not c\ncat <<-'END' > /etc/x\n\talt wrong\n\tEND\nalt c 2>/dev/null >&2\n"
    assert called(script) == [("alt", "a", "b"), ("cat",), ("alt", "c")]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('case "$1" in configure|reconfigure) a;; abort-*) b;; esac', ["a"]),
        ('if [ "$1" = configure ] && [ -z "$2" ]; then a; else b; fi', ["a"]),
        ('if [ "$1" != configure ]; then a; elif test -n "$2"; then b; else c; fi', ["c"]),
        ('if dpkg --compare-versions "$2" lt-nl 1.0; then b; fi; a', ["dpkg", "a"]),
        ('[ "$1" = configure ] || exit 0; a; exit 0; b', ["a"]),
        ("false && b; true || b; ! false && a", ["false", "false", "a"]),
    ],
)
def test_conditions_on_arguments_are_decided(script: str, expected: list[str]) -> None:
    assert [command[0] for command in called(script)] == expected


@pytest.mark.parametrize(
    "script",
    [
        "if [ -e /etc/x ]; then a; else b; fi",
        "if getent passwd x; then a; else b; fi",
        'case "$UNKNOWN" in x) a;; *) b;; esac',
        "command -v x || a; b",
    ],
)
def test_both_branches_count_when_the_condition_is_about_the_machine(script: str) -> None:
    assert [command[0] for command in called(script) if command[0] in ("a", "b")] == ["a", "b"]


def test_an_exit_that_may_not_be_reached_does_not_end_the_script() -> None:
    assert called("if unknown; then exit 0; fi; a")[-1] == ("a",)


def test_words_that_are_not_known_are_marked() -> None:
    assert called('a x$(uname -m) "$UNSET" $(basename /usr/bin/vim) ${2:-none} ${1%gure}') == [
        ("a", None, None, "vim", "none", "confi")
    ]


def test_temporary_files_have_names() -> None:
    assert called('t=$(mktemp)\ncp /usr/share/x "$t"\n') == [("cp", "/usr/share/x", f"{TEMPORARY}1")]


@pytest.mark.parametrize(
    "script", ["f () { f; f; f; }; f", "for i in 1; do", "echo 'open", "a ) b", "case x in y) a"]
)
def test_a_script_that_cannot_be_read_is_no_error(script: str) -> None:
    assert isinstance(commands(script), list)


def test_loops_in_loops_end() -> None:
    words = " ".join(map(str, range(50)))
    script = "".join(f"for a{level} in {words}; do " for level in range(6)) + "x; " + "done; " * 6
    assert len(commands(script)) <= 20_000
