from __future__ import annotations

import pytest

from scripts.debian_smoke.commands import COMMANDS as TABLE
from scripts.debian_smoke.commands import Command, Run, commands_for, fault, is_decisive
from scripts.debian_smoke.packages import read_packages

USUAL = Command(("--version",))


@pytest.mark.parametrize(
    "line",
    [
        "x: error while loading shared libraries: libz.so.1: cannot open shared object file",
        "/bin/x: symbol lookup error: /lib/y.so: undefined symbol: z",
        "/bin/x: /lib/libc.so.6: version `GLIBC_2.38' not found (required by /bin/x)",
        "ModuleNotFoundError: No module named 'x'",
        "Can't locate JSON.pm in @INC (you may need to install the JSON module)",
        "<internal:rubygems>:85:in `require': cannot load such file -- x (LoadError)",
        "Error: Cannot find module 'semver/functions/satisfies'",
        "Error: Could not find or load main class org.example.Main",
        'Exception in thread "main" java.lang.NoClassDefFoundError: org/x/Y',
        "/usr/bin/x: line 3: sed: command not found",
        "/usr/bin/x: 12: sed: not found",
        "sh: /usr/bin/x: bad interpreter: /usr/bin/perl",
        "cat: /usr/share/x/version: No such file or directory",
        "perl: warning: Setting locale failed.",
        "PHP Warning:  PHP Startup: Unable to load dynamic library",
    ],
)
def test_a_message_of_a_missing_part_is_a_fault_whatever_the_status_is(line: str) -> None:
    run = Run(0, f"x 1.0\n{line}\nmore\n")
    assert fault(USUAL, run) == line
    assert is_decisive(run)


def test_a_traceback_is_named_by_its_exception() -> None:
    output = 'Traceback (most recent call last):\n  File "x", line 1, in <module>\n    y()\nKeyError: 7\n'
    assert fault(USUAL, Run(1, output)) == "KeyError: 7"


@pytest.mark.parametrize("output", ["", "x 1.0 (not found by others)\n", "no module of this is missing\n"])
def test_a_status_of_zero_without_a_message_is_a_start(output: str) -> None:
    assert fault(USUAL, Run(0, output)) is None


def test_a_usage_text_counts_only_if_the_table_says_so() -> None:
    run = Run(1, "usage: x [-a]\n")
    assert fault(USUAL, run) == "exit status 1: usage: x [-a]"
    assert not is_decisive(run)
    assert fault(Command((), frozenset({1}), "^usage"), run) is None
    assert fault(Command((), frozenset({1}), "^version"), run) == "unexpected output: usage: x [-a]"


def test_a_program_that_cannot_be_executed_needs_no_second_command() -> None:
    assert is_decisive(Run(127, "sh: no x\n"))
    assert is_decisive(Run(139, ""))
    assert not is_decisive(Run(None, ""))
    assert fault(USUAL, Run(None, "")) == "it ran until the time limit"


def test_the_table_has_only_packages_of_the_list() -> None:
    names = {package.name for package in read_packages()}
    lines = [line.strip("[]") for line in TABLE.read_text().splitlines() if line.startswith("[")]
    assert {name.strip('"') for name in lines} <= names
    assert all(len(commands_for(name)) == 1 for name in names & set(lines))


def test_a_message_about_an_optional_file_is_no_fault_if_the_table_says_so() -> None:
    command = Command((), ignores=r"(?m)^open: \S*/x\.conf: No such file or directory$")
    optional = "open: /etc/x.conf: No such file or directory"
    assert fault(command, Run(0, f"{optional}\nready\n")) is None
    assert fault(USUAL, Run(0, f"{optional}\nready\n")) == optional
    missing = "open: /usr/share/x/data: No such file or directory"
    assert fault(command, Run(0, f"{optional}\n{missing}\n")) == missing
