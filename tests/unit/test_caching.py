"""Bounded caches, and single flight."""

from __future__ import annotations

import asyncio

import pytest

from nixery.caching import LRUCache, SingleFlight, TTLCache, size_of_error
from nixery.errors import LONGEST_MESSAGE, PackagesUnavailable, Reason, ShuttingDown, UnavailablePackage


def test_the_least_recently_used_entry_is_evicted() -> None:
    kept: LRUCache[str, int] = LRUCache(3 * 1512)
    for number, key in enumerate("abc"):
        kept.put(key, number, 1000)
    assert kept.get("a") == 0
    kept.put("d", 3, 1000)
    assert [kept.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_replacing_a_value_frees_its_bytes() -> None:
    kept: LRUCache[str, int] = LRUCache(2 * 1512)
    for number in range(10):
        kept.put("a", number, 1000)
    kept.put("b", 1, 1000)
    assert (kept.get("a"), kept.get("b")) == (9, 1)


def test_a_value_larger_than_the_cache_is_not_kept_and_evicts_nothing() -> None:
    kept: LRUCache[str, int] = LRUCache(2000)
    kept.put("a", 1, 100)
    kept.put("b", 2, 1999)
    assert (kept.get("a"), kept.get("b")) == (1, None)


def test_entries_without_content_are_bounded() -> None:
    kept: LRUCache[int, None] = LRUCache(100_000)
    for number in range(10_000):
        kept.put(number, None, 0)
    assert len(kept) < 200


def test_discarding_a_key_frees_its_bytes() -> None:
    kept: LRUCache[str, int] = LRUCache(10_000)
    kept.put("a", 1, 1)
    kept.discard("a")
    kept.discard("a")
    assert kept.get("a") is None
    assert len(kept) == 0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_entry_expires_after_its_own_time() -> None:
    clock = Clock()
    kept: TTLCache[str, int] = TTLCache(10_000, clock)
    kept.put("short", 1, 100, 5)
    kept.put("long", 2, 100, 50)
    clock.now = 4.9
    assert (kept.get("short"), kept.get("long")) == (1, 2)
    clock.now = 5
    assert (kept.get("short"), kept.get("long")) == (None, 2)


def test_putting_an_entry_again_renews_it() -> None:
    clock = Clock()
    kept: TTLCache[str, int] = TTLCache(10_000, clock)
    kept.put("a", 1, 100, 5)
    clock.now = 4
    kept.put("a", 2, 100, 5)
    clock.now = 8
    assert kept.get("a") == 2


def test_an_entry_without_a_time_to_live_is_not_kept_and_replaces_the_old_one() -> None:
    kept: TTLCache[str, int] = TTLCache(10_000, Clock())
    kept.put("a", 1, 100, 5)
    kept.put("a", 2, 100, 0)
    assert kept.get("a") is None


def test_entries_that_expire_are_bounded_too() -> None:
    kept: TTLCache[str, int] = TTLCache(2 * 1512, Clock())
    for number, key in enumerate("abc"):
        kept.put(key, number, 1000, 5)
    kept.put("too large", 3, 10_000, 5)
    assert [kept.get(key) for key in ("a", "b", "c", "too large")] == [None, 1, 2, None]


def test_the_size_of_an_error_includes_its_packages() -> None:
    # The message is cut, and the packages are not.
    packages = tuple(UnavailablePackage(f"p{number}", Reason.THROWS, "x" * 2000) for number in range(100))
    error = PackagesUnavailable(packages)
    assert len(str(error)) <= LONGEST_MESSAGE + 1
    assert size_of_error(error) > 100 * 2000


class Work:
    def __init__(self) -> None:
        self.started = 0
        self.finish = asyncio.Event()

    async def __call__(self) -> int:
        self.started += 1
        await self.finish.wait()
        return self.started


async def test_concurrent_callers_share_one_run() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()
    waiting = [asyncio.ensure_future(flight.run("key", work)) for _ in range(8)]
    await asyncio.sleep(0)
    work.finish.set()
    assert await asyncio.gather(*waiting) == [1] * 8


async def test_a_later_caller_starts_a_new_run() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.finish.set()
    assert [await flight.run("key", work), await flight.run("key", work)] == [1, 2]


async def test_a_run_continues_when_its_callers_leave() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()
    gone = asyncio.ensure_future(flight.run("key", work))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    back = asyncio.ensure_future(flight.run("key", work))
    await asyncio.sleep(0)
    work.finish.set()
    assert await back == 1


async def test_all_callers_get_a_failure_and_it_is_not_kept() -> None:
    flight: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        raise ValueError("no")

    results = await asyncio.gather(*(flight.run("key", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    work = Work()
    work.finish.set()
    assert await flight.run("key", work) == 1


async def test_closing_ends_runs_and_starts_none() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    waiting = asyncio.ensure_future(flight.run("key", Work()))
    await asyncio.sleep(0)
    await flight.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await flight.run("key", Work())


async def test_a_caller_just_after_the_end_starts_a_new_run() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()

    def ask() -> None:
        flight.run("key", work)

    async def first() -> int:
        # Called when the task has ended, before the callbacks of its end.
        asyncio.get_running_loop().call_soon(ask)
        return 0

    assert await flight.run("key", first) == 0
    for _ in range(3):
        await asyncio.sleep(0)
    assert work.started == 1
    await flight.close()
