"""Pages of a listing, of which the asker may see parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nixery.access.identity import Identity, Kind
from nixery.access.policy import Access, enter_access
from nixery.server.visible_entries import visible_entries

ENTRIES = [f"{number:05}" for number in range(4000)]


async def read(after: str, limit: int) -> Sequence[str]:
    return [entry for entry in ENTRIES if entry > after][:limit]


@pytest.fixture(autouse=True)
def _rules() -> None:
    enter_access(Access(Identity(Kind.PASSWORD, "bob"), []))


@pytest.mark.parametrize(
    ("last_digits", "after", "limit", "expected"),
    [
        ("", "", 2, ["00000", "00001"]),
        ("999", "", 3, ["00999", "01999", "02999"]),
        ("999", "01999", 3, ["02999", "03999"]),
        ("999", "", 0, []),
        ("x", "", 3, []),
    ],
)
async def test_a_page_is_full_although_most_entries_are_hidden(
    last_digits: str, after: str, limit: int, expected: list[str]
) -> None:
    assert await visible_entries(read, lambda entry: entry.endswith(last_digits), after, limit) == expected


async def test_readings_are_bounded() -> None:
    readings: list[int] = []

    async def endless(after: str, limit: int) -> Sequence[str]:
        readings.append(limit)
        first = int(after or -1) + 1
        return [f"{number:08}" for number in range(first, first + limit)]

    assert not await visible_entries(endless, lambda _: False, "", 3)
    assert readings == [1000] * 20
