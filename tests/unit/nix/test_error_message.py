import pytest

from nixery.nix.error_message import (
    NixMessage,
    collected_path,
    explanation,
    reports_full_disk,
    reports_machine_error,
    without_paths,
)


def test_the_explanation_of_an_old_nix() -> None:
    assert (
        explanation(
            ["warning: x", "error: bad is gone", "(use '--show-trace' to show detailed location information)"]
        )
        == "bad is gone"
    )


def test_the_explanation_is_the_last_error_of_a_trace() -> None:
    stderr = [
        "error:",
        "       … while evaluating the attribute 'drvPath'",
        "         at /set/default.nix:3:5:",
        "",
        "       error: cannot add a string to an integer",
        "       at /set/default.nix:3:9:",
    ]
    assert explanation(stderr) == "cannot add a string to an integer"


def test_an_explanation_has_no_colours_and_one_line() -> None:
    assert explanation(["\x1b[31;1merror:\x1b[0m it is", "       broken", "", "more"]) == "it is broken"


OLD = """\
error: attribute 'helo' missing

       at /srv/set/pkgs/top-level/all-packages.nix:123:5:

          122|   deep = f 0;
          123|   near = lib.helo;
             |     ^
       Did you mean one of hello or help?
(use '--show-trace' to show detailed location information)
"""
OLD_TRACE = """\
error: it is gone
       for good

       nobody missed it

       \u2026 while evaluating the attribute 'outer'

       at /opt/nixery/packages.nix:9:9:

       \u2026 while evaluating the attribute 'buildInputs'

       at /srv/set/default.nix:5:3:

            4| in {
            5|   throwing = throw "x";
       \u2026 while evaluating the attribute 'outermost'

       at /srv/set/other.nix:1:1:
"""
NEW = """\
error:
       \u2026 while evaluating the attribute 'drvPath'
         at /srv/set/outer.nix:3:5:
            2|
       \u2026 while calling the 'throw' builtin
         at /srv/set/pkgs/inner.nix:7:9:
            6|

       error: it is gone
"""


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (
            OLD,
            "attribute 'helo' missing, at pkgs/top-level/all-packages.nix:123:5; did you mean one of hello or help?",
        ),
        (OLD_TRACE, "it is gone for good, at default.nix:5:3, attribute 'buildInputs'"),
        (NEW, "it is gone, at pkgs/inner.nix:7:9"),
        ("error: out of memory\n", "out of memory"),
        ("error: opening file '/etc/x': no\n\n       at /etc/other.nix:1:2:\n", "opening file '\u2026': no"),
        ("", ""),
    ],
)
def test_an_error_is_described_with_its_position_in_the_set(stderr: str, said: str) -> None:
    assert NixMessage.parse(stderr.splitlines()).relative_to("/srv/set") == said


def test_positions_of_a_flake_are_those_of_its_trees() -> None:
    store = f"/nix/store/{'a' * 32}-source"
    message = NixMessage.parse(["error: no", "", f"at {store}/pkgs/x.nix:1:2:"])
    assert message.relative_to(None) == "no, at pkgs/x.nix:1:2"


def test_a_description_is_bounded_and_keeps_position_and_suggestion() -> None:
    lines = ["error: " + "x" * 5000, "", "at /srv/set/a.nix:1:2:", "Did you mean b?"]
    said = NixMessage.parse(lines).relative_to("/srv/set")
    assert len(said) == 2000
    assert said.endswith("x\u2026, at a.nix:1:2; did you mean b?")


def test_without_an_error_the_explanation_is_empty() -> None:
    assert explanation([]) == ""


def test_errors_of_the_machine_are_recognised() -> None:
    assert reports_machine_error(["error: cannot open database '/nix/var/nix/db/db.sqlite'"])
    assert reports_machine_error(["error: writing to file: No space left on device"])
    assert not reports_machine_error(["error: cannot add a string to an integer"])
    assert not reports_machine_error([])


@pytest.mark.parametrize(
    "message",
    [
        "error: committing transaction: database or disk is full (in '/nix/var/nix/db/db.sqlite')",
        "error: executing SQLite statement 'pragma synchronous = normal': disk I/O error (in '/nix/var/nix/db/db.sqlite')",
        "error: cannot add a derivation: disk I/O error",
    ],
)
def test_a_full_database_is_not_an_error_of_a_package(message: str) -> None:
    assert reports_machine_error([message])


def test_a_disk_error_counts_as_full_only_on_a_full_disk() -> None:
    assert reports_full_disk("database or disk is full")
    assert reports_full_disk("note: build failure may have been caused by lack of free disk space")
    assert not reports_full_disk("disk I/O error")
    assert not reports_full_disk("error: syntax error, unexpected end of file")


def test_paths_of_this_machine_are_removed() -> None:
    message = "cannot open '/nix/var/nix/db/db.sqlite' for /nix/store/abc-x and a/b"
    assert without_paths(message) == "cannot open '…' for /nix/store/abc-x and a/b"


@pytest.mark.parametrize(
    "kept", ["https://example.org/a/b?c", "~/.config/nixpkgs/config.nix", "a/b", "../x", "1 / 2"]
)
def test_texts_that_are_no_paths_of_this_machine_stay(kept: str) -> None:
    assert without_paths(f"see {kept} for it") == f"see {kept} for it"


@pytest.mark.parametrize(
    "path", ["/srv/x", "file:///srv/x", "file:/srv/x", "path:/srv/x", "at=/srv/x", "(/srv/x", "\u2018/srv/x"]
)
def test_no_form_of_a_path_stays(path: str) -> None:
    assert "srv" not in without_paths(f"see {path} for it")


GONE = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-gone-1.0.drv"


@pytest.mark.parametrize(
    "said",
    [
        f"error: path '{GONE}' is not valid",
        f"error: cannot build missing derivation '\x1b[35;1m{GONE}\x1b[0m'",
        f"don't know how to build these paths:\n  {GONE}",
        f"error: opening file '{GONE}': No such file or directory",
    ],
)
def test_a_collected_path_is_found_in_an_error(said: str) -> None:
    assert collected_path(["something else", *said.splitlines()]) == GONE


def test_a_missing_file_within_an_existing_path_was_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.nix.error_message.os.path.lexists", lambda path: path == GONE)
    assert collected_path([f"error: opening file '{GONE}/missing.nix': No such file or directory"]) is None


def test_other_errors_name_no_collected_path() -> None:
    assert collected_path([f"error: builder for '{GONE}' failed with exit code 1"]) is None
