"""Pages of a sorted listing, of which clients see parts: a page, and where the next one begins, name no hidden entry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nixery.access.policy import current_access

# Entries of one reading if most may be hidden, and readings for one page. A client that may see none of 20,000 entries
# in a row does not see those behind them.
_READ, _READINGS = 1000, 20


async def visible_entries(
    read: Callable[[str, int], Awaitable[Sequence[str]]],
    is_visible: Callable[[str], bool],
    after: str,
    limit: int,
) -> Sequence[str]:
    """Return the first entries that the asker may see.

    The next page has to begin after one of them: a link to a hidden entry would name it.

    Args:
        read: returns some entries after one, in order, and at most as many as asked for; fewer at the end.
        is_visible: whether the asker may see an entry.
        after: any text; only larger entries are returned.
        limit: of the number of entries.
    """
    if not current_access().is_restricted:
        return await read(after, limit)
    found: list[str] = []
    asked = max(limit, _READ)
    for _ in range(_READINGS if limit else 0):
        entries = await read(after, asked)
        found += filter(is_visible, entries)
        if len(found) >= limit or len(entries) < asked:
            break
        after = entries[-1]
    return found[:limit]
