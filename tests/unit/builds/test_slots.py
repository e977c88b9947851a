from __future__ import annotations

import asyncio

import pytest

from nixery.builds.slots import Slots
from nixery.errors import TooBusy


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def slots(self, limit: int, queue: int) -> Slots:
        return Slots(limit, queue, lambda: self.now)

    async def work(self, slots: Slots, seconds: float) -> None:
        async with slots.slot():
            self.now += seconds


@pytest.fixture
def world() -> World:
    return World()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_first_come_first_served(world: World) -> None:
    slots = world.slots(1, 10)

    async def work(name: str) -> None:
        async with slots.slot():
            world.order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(name) for name in "abcd"))
    assert world.order == list("abcd")


async def test_nobody_is_quicker_than_who_waits(world: World) -> None:
    slots = world.slots(1, 1)

    async def work(name: str) -> None:
        async with slots.slot():
            world.order.append(name)

    async with slots.slot():
        waiting = asyncio.ensure_future(work("waited"))
        await settled()
    # The slot is given up, and spoken for.
    await work("came later")
    await waiting
    assert world.order == ["waited", "came later"]


async def test_who_goes_away_gives_the_place_up(world: World) -> None:
    slots = world.slots(1, 1)
    async with slots.slot():
        for _ in range(3):
            waiting = asyncio.ensure_future(world.work(slots, 1))
            await settled()
            waiting.cancel()
            await asyncio.wait({waiting})
        waiting = asyncio.ensure_future(world.work(slots, 1))
        await settled()
    await waiting
    await world.work(slots, 1)


async def test_a_turn_that_nobody_takes_goes_to_the_next(world: World) -> None:
    slots = world.slots(1, 2)
    async with slots.slot():
        first = asyncio.ensure_future(world.work(slots, 1))
        second = asyncio.ensure_future(world.work(slots, 1))
        await settled()
    # It is the turn of the first one, which does not know it yet.
    first.cancel()
    await asyncio.wait_for(second, 1)
    await asyncio.wait_for(world.work(slots, 1), 1)


async def test_coming_back_is_worth_it_when_those_in_front_are_done(world: World) -> None:
    slots = world.slots(2, 100)
    for _ in range(5):
        await world.work(slots, 8)
    assert slots.retry_after == 4
    async with slots.slot(), slots.slot():
        waiting = [asyncio.ensure_future(world.work(slots, 0)) for _ in range(5)]
        await settled()
        world.now += 8
        assert slots.retry_after == 8 * 6 / 2
        waiting += [asyncio.ensure_future(world.work(slots, 0)) for _ in range(95)]
        await settled()
        with pytest.raises(TooBusy) as raised:
            await world.work(slots, 0)
        assert raised.value.retry_after == 60
    await asyncio.gather(*waiting)


async def test_what_takes_longer_than_usual_is_told_of_too(world: World) -> None:
    slots = world.slots(1, 100)
    await world.work(slots, 1)
    async with slots.slot():
        world.now += 30
        assert slots.retry_after == 30


async def test_what_takes_no_time_is_worth_a_second(world: World) -> None:
    slots = world.slots(1, 1)
    await world.work(slots, 0.01)
    assert slots.retry_after == 1


async def test_old_durations_are_forgotten(world: World) -> None:
    slots = world.slots(1, 1)
    for _ in range(50):
        await world.work(slots, 50)
    for _ in range(20):
        await world.work(slots, 2)
    assert slots.retry_after == 2


async def test_a_failure_gives_the_slot_back(world: World) -> None:
    slots = world.slots(1, 0)
    with pytest.raises(ZeroDivisionError):
        async with slots.slot():
            raise ZeroDivisionError
    await world.work(slots, 1)
