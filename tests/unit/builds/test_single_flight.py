import asyncio

import pytest

from nixery.caching import SingleFlight
from nixery.errors import ShuttingDown


class Work:
    def __init__(self) -> None:
        self.started = 0
        self.finish = asyncio.Event()

    async def __call__(self) -> int:
        self.started += 1
        await self.finish.wait()
        return self.started


async def test_those_who_ask_at_the_same_time_share_one_run() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()
    waiting = [asyncio.ensure_future(flight.run("key", work)) for _ in range(8)]
    await asyncio.sleep(0)
    work.finish.set()
    assert await asyncio.gather(*waiting) == [1] * 8


async def test_who_asks_afterwards_starts_anew() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.finish.set()
    assert [await flight.run("key", work), await flight.run("key", work)] == [1, 2]


async def test_work_goes_on_when_those_who_wait_go_away() -> None:
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


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    flight: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        raise ValueError("no")

    results = await asyncio.gather(*(flight.run("key", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    work = Work()
    work.finish.set()
    assert await flight.run("key", work) == 1


async def test_closing_ends_what_runs_and_starts_nothing_more() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    waiting = asyncio.ensure_future(flight.run("key", Work()))
    await asyncio.sleep(0)
    await flight.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await flight.run("key", Work())


async def test_who_asks_when_it_has_just_ended_starts_anew() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    work = Work()

    def ask() -> None:
        asking = flight.run("key", work)
        asking.send(None)  # as far as it gets at once
        asking.close()

    async def first() -> int:
        # Called when the task has ended, before anything that is called because of that.
        asyncio.get_running_loop().call_soon(ask)
        return 0

    assert await flight.run("key", first) == 0
    for _ in range(3):
        await asyncio.sleep(0)
    assert work.started == 1
    await flight.close()
