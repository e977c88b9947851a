"""Listing names; what was recorded is made up."""

from __future__ import annotations

import asyncio

from nixery.server.http import Request
from nixery.server.registry.discovery import Discovery


class Recorded:
    """A ``Catalogue`` that takes its time."""

    def __init__(self) -> None:
        self.all = ["first"]
        self.scans = self.running = self.most = 0
        self.may_end = asyncio.Event()

    async def names(self) -> list[str]:
        self.scans += 1
        self.running += 1
        self.most = max(self.most, self.running)
        found = list(self.all)
        await self.may_end.wait()
        self.running -= 1
        return found


async def test_however_many_ask_the_records_are_read_once_at_a_time() -> None:
    recorded = Recorded()
    discovery = Discovery(recorded)  # type: ignore[arg-type]

    def ask() -> asyncio.Task[bytes]:
        async def catalog() -> bytes:
            return (await discovery.catalog(Request("GET", "/v2/_catalog"))).content

        return asyncio.ensure_future(catalog())

    first = ask()
    for _ in range(5):
        await asyncio.sleep(0)
    recorded.all.append("second")
    others = [ask() for _ in range(100)]
    for _ in range(5):
        await asyncio.sleep(0)
    others[0].cancel()
    recorded.may_end.set()
    assert b"second" not in await first
    assert all([b"second" in await other for other in others[1:]])
    assert (recorded.scans, recorded.most) == (2, 1)
    recorded.all.append("third")
    assert b"third" in await ask()
