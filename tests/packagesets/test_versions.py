"""Debian's version order."""

import pytest
from locking.versions import satisfies, version_key


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0", "1.1"),
        ("1.9", "1.10"),
        ("1.0~rc1", "1.0"),
        ("1.0~~", "1.0~"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0+b"),
        ("1.0-1", "1.0-2"),
        ("1.0-1", "1.0-1+b1"),
        ("9.9-9", "1:0.1-1"),
        ("2.39.5-0+deb12u2", "2.39.5-0+deb12u3"),
        ("5-1-2", "5-1-10"),
    ],
)
def test_order(lower: str, higher: str) -> None:
    assert version_key(lower) < version_key(higher)
    assert satisfies(higher, ">>", lower)
    assert not satisfies(lower, ">=", higher)


def test_leading_zeros_and_a_missing_revision_do_not_count() -> None:
    assert version_key("1.01") == version_key("1.1")
    assert satisfies("1.0", "=", "1.0-0")


def test_no_version_meets_an_unknown_relation() -> None:
    assert not satisfies("1", "!=", "2")
