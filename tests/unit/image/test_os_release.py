"""The facts that a package set gives about itself."""

from __future__ import annotations

import subprocess

import pytest

from nixery.image.os_release import DEFAULT_FACTS, InvalidFacts, os_release_file

DEBIAN = {
    "ID": "debian",
    "NAME": "Debian GNU/Linux",
    "VERSION_ID": "12",
    "VERSION": "12 (bookworm)",
    "HOME_URL": "https://www.debian.org/",
}


def test_a_set_that_says_nothing() -> None:
    assert os_release_file({}) == (
        b'PRETTY_NAME="Nixery image"\nNAME=Nixery\nVERSION_ID=rolling\nVERSION=rolling\nID=nixery\n'
    )


def test_the_order_of_the_facts_changes_nothing() -> None:
    assert os_release_file(dict(reversed(DEBIAN.items()))) == os_release_file(DEBIAN)
    assert os_release_file(DEBIAN) == (
        b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
        b'NAME="Debian GNU/Linux"\n'
        b"VERSION_ID=12\n"
        b'VERSION="12 (bookworm)"\n'
        b"ID=debian\n"
        b'HOME_URL="https://www.debian.org/"\n'
    )


@pytest.mark.parametrize("value", ["a b", "$(id)", "`id`", '"', "'", "\\", "a;b", "größer", "x" * 1000])
def test_a_shell_reads_every_value_as_it_is(value: str) -> None:
    # As scripts do: `. /etc/os-release`.
    script = os_release_file({"ID": "x", "NAME": value}).decode() + 'printf %s "$NAME"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode() == value


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"NAME": "x"}, "ID is required"),
        ({"ID": "x"}, "NAME is required"),
        ({"PATH": "/x"}, "'PATH' is not a field of os-release"),
        ({"A=1\nB": "x"}, r"'A=1\\nB' is not a field"),
        ({"NAME": ""}, "NAME should have 1 to 1000 characters, not 0"),
        ({"NAME": "x" * 1001}, "not 1001"),
        ({"NAME": "a\nID=b"}, r"NAME should be printable, unlike 'a\\nID=b'"),
        ({"NAME": "\x1b[31m"}, "printable"),
        ({"NAME": "\ud800"}, "printable"),
        ({"ID": "Debian"}, "ID should have lower-case letters"),
        ({"ID": "a b"}, "ID should have"),
        ({"ID_LIKE": "a  b"}, "ID_LIKE should have"),
        ({"VERSION_ID": "12 13"}, "VERSION_ID should have"),
    ],
)
def test_wrong_facts_are_refused(facts: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidFacts, match=message):
        os_release_file(facts if len(facts) == 1 and "required" in message else {**DEFAULT_FACTS, **facts})
