import pytest

from nixery.builds.creation_date import CreationDate
from nixery.sources.source import Pin

PIN = Pin("git:x", "abc", "abc", created=1_700_000_000)
NOW = 1_800_000_000.9


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("source", 1_700_000_000),
        ("build", 1_800_000_000),
        ("2026-01-31T12:00:00Z", 1_769_860_800),
        ("2026-01-31 12:00:00.123456789z", 1_769_860_800),
        ("2026-01-31t14:30:00+02:30", 1_769_860_800),
        (" 1769860800 ", 1_769_860_800),
        ("1", 1),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_the_date_of_an_image(text: str, date: int) -> None:
    assert CreationDate.parse(text).of(PIN, NOW) == date


def test_a_source_may_have_no_date() -> None:
    assert CreationDate().of(Pin("path:x", "abc", "abc"), NOW) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "-1",
        "1e9",
        "253402300800",
        "9" * 5000,
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00:00+99:00",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:00",
        "9999-12-31T23:59:59-23:00",
        "٢٠٢٦-01-31T12:00:00Z",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not source, build, a date such as"):
        CreationDate.parse(text)


def test_the_same_date_is_the_same_rule() -> None:
    rules = {
        CreationDate.parse(text)
        for text in ("2026-01-31T12:00:00Z", "1769860800", "2026-01-31T13:00:00+01:00")
    }
    assert len(rules) == 1
    assert all(rule.is_reproducible for rule in rules)
    assert not CreationDate.parse("build").is_reproducible
