from __future__ import annotations

import pytest

from nixery.quantities import DiskMark, seconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("20G", 20 << 30),
        ("20GiB", 20 << 30),
        ("20GB", 20 * 10**9),
        ("1.5 k", 1536),
        ("500mb", 500_000_000),
        ("7b", 7),
    ],
)
def test_a_size_may_have_a_unit(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1", "1 X", "1.G", "1e3", "²", "1 GiB more"])
def test_other_texts_are_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example"):
        size(text)


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("2 h", 7200), ("30d", 30 * 86400)])
def test_a_duration_may_have_a_unit(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "1.5h", "-1s", "2 hours"])
def test_other_texts_are_not_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write for example"):
        seconds(text)


def test_watermarks_of_different_units_are_not_compared() -> None:
    half, most, bytes_ = DiskMark.parse("50%"), DiskMark.parse("90 %"), DiskMark.parse("50GiB")
    assert half.is_below(most)
    assert not most.is_below(half)
    assert not half.is_below(half)
    assert not half.is_below(bytes_)
    assert not bytes_.is_below(most)
    assert DiskMark.parse("49G").is_below(bytes_)


def test_a_watermark_can_be_scaled() -> None:
    assert DiskMark.parse("90%").times(0.5).value == 45
    assert DiskMark.parse("1000").times(0.9).value == 900


@pytest.mark.parametrize("text", ["100%", "many", "-5%", ""])
def test_other_texts_are_not_watermarks(text: str) -> None:
    with pytest.raises(ValueError, match="neither a percentage nor a size"):
        DiskMark.parse(text)
