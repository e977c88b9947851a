"""The release that the lock of Debian's package set names."""

from __future__ import annotations

import pytest
from locking.release import Release, os_release, parse_targets


def test_the_largest_index_says_which_release_it_is() -> None:
    answer = "10\tAcme\tstable\t7\n900\tDebian\tbookworm\t12.15\n20\tDebian\tbookworm-updates\t12-updates\n"
    assert parse_targets(answer) == Release("Debian", "bookworm", "12.15")
    assert parse_targets("") == parse_targets("no size\tDebian\n") == Release()


def test_point_releases_are_not_named() -> None:
    facts = os_release(Release("Debian", "bookworm", "12.15"))
    assert facts == {
        "PRETTY_NAME": "Nixery image of packages of Debian 12 (bookworm)",
        "NAME": "Nixery",
        "VERSION_ID": "12",
        "VERSION": "12 (bookworm)",
        "VERSION_CODENAME": "bookworm",
        "ID": "nixery",
        "ID_LIKE": "debian",
    }
    assert os_release(Release("Debian", "bookworm", "12.16")) == facts


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (Release("Ubuntu", "noble", "24.04"), {"VERSION_ID": "24.04", "ID_LIKE": "ubuntu debian"}),
        # Testing has no number.
        (Release("Debian", "forky", ""), {"VERSION": "(forky)", "VERSION_CODENAME": "forky"}),
        (Release("A $b", "`c`", "1"), {"ID_LIKE": "a-b debian", "VERSION_CODENAME": "c"}),
    ],
)
def test_other_releases(release: Release, expected: dict[str, str]) -> None:
    assert expected.items() <= os_release(release).items()


def test_nothing_is_known_about_a_release_without_a_name() -> None:
    facts = os_release(Release())
    assert facts["PRETTY_NAME"] == "Nixery image of packages of Debian"
    assert not {"VERSION_ID", "VERSION", "VERSION_CODENAME"} & facts.keys()
