"""Slots: order, fairness among clients, rejection, and retry times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context

import pytest

from nixery.builds.slots import Share, Slots
from nixery.caching import SingleFlight
from nixery.errors import TooBusy
from nixery.request_context import Client, Parties, RequestContext, enter_parties, enter_request
from tests.support.event_loop import settle


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


async def test_work_of_one_client_runs_in_order_of_arrival(world: World) -> None:
    slots = world.slots(1, 10)

    async def work(name: str) -> None:
        async with slots.slot():
            world.order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(name) for name in "abcd"))
    assert world.order == list("abcd")


async def test_new_work_does_not_overtake_waiting_work(world: World) -> None:
    slots = world.slots(1, 1)

    async def work(name: str) -> None:
        async with slots.slot():
            world.order.append(name)

    async with slots.slot():
        waiting = asyncio.ensure_future(work("waited"))
        await settle()
    # The slot was released and is assigned to the next task.
    await work("came later")
    await waiting
    assert world.order == ["waited", "came later"]


async def test_cancelled_work_gives_up_its_place(world: World) -> None:
    slots = world.slots(1, 1)
    async with slots.slot():
        for _ in range(3):
            waiting = asyncio.ensure_future(world.work(slots, 1))
            await settle()
            waiting.cancel()
            await asyncio.wait({waiting})
        waiting = asyncio.ensure_future(world.work(slots, 1))
        await settle()
    await waiting
    await world.work(slots, 1)


async def test_the_slot_of_cancelled_work_goes_to_the_next(world: World) -> None:
    slots = world.slots(1, 2)
    async with slots.slot():
        first = asyncio.ensure_future(world.work(slots, 1))
        second = asyncio.ensure_future(world.work(slots, 1))
        await settle()
    # The first task has the slot but has not resumed yet.
    first.cancel()
    await asyncio.wait_for(second, 1)
    await asyncio.wait_for(world.work(slots, 1), 1)


async def test_the_retry_time_estimates_the_queue(world: World) -> None:
    slots = world.slots(2, 100)
    for _ in range(5):
        await world.work(slots, 8)
    assert slots.retry_after == 4
    async with slots.slot(), slots.slot():
        waiting = [asyncio.ensure_future(world.work(slots, 0)) for _ in range(5)]
        await settle()
        world.now += 8
        assert slots.retry_after == 8 * 6 / 2
        waiting += [asyncio.ensure_future(world.work(slots, 0)) for _ in range(95)]
        await settle()
        with pytest.raises(TooBusy) as raised:
            await world.work(slots, 0)
        assert raised.value.retry_after == 60
    await asyncio.gather(*waiting)


async def test_the_retry_time_includes_work_that_takes_longer_than_usual(world: World) -> None:
    slots = world.slots(1, 100)
    await world.work(slots, 1)
    async with slots.slot():
        world.now += 30
        assert slots.retry_after == 30


async def test_the_retry_time_is_at_least_a_second(world: World) -> None:
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


async def test_a_failure_releases_the_slot(world: World) -> None:
    slots = world.slots(1, 0)
    with pytest.raises(ZeroDivisionError):
        async with slots.slot():
            raise ZeroDivisionError
    await world.work(slots, 1)


class Clients:
    """Clients whose work ends when the test says so."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.running: list[str] = []
        self.done: list[str] = []
        self.positions: dict[str, list[int]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    def ask(self, client: str, work: str, *, awaited: bool = True) -> asyncio.Task[None]:
        return self.ask_for(client, lambda: self.work(work), awaited=awaited)

    def ask_for(
        self, client: str, work: Callable[[], Awaitable[None]], *, awaited: bool = True
    ) -> asyncio.Task[None]:
        async def ask() -> None:
            one = Client(client)
            enter_request(RequestContext(client, one))
            if not awaited:
                enter_parties(Parties(one, awaited=False))
            await work()

        return asyncio.get_running_loop().create_task(ask(), context=copy_context())

    async def work(self, name: str) -> None:
        self._ends[name] = asyncio.Event()
        async with self.slots.slot(self.positions.setdefault(name, []).append):
            self.running.append(name)
            await self._ends[name].wait()
            self.running.remove(name)
        self.done.append(name)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def end_all(self, tasks: list[asyncio.Task[None]]) -> None:
        while self.running:
            await self.end(self.running[0])
        await asyncio.gather(*tasks, return_exceptions=True)


def clients(limit: int, queue: int, share: Share | None = None) -> Clients:
    return Clients(Slots(limit, queue, lambda: 0.0, share=share or Share()))


async def test_clients_take_turns_and_each_is_served_in_its_own_order() -> None:
    one = clients(1, 100)
    tasks = [one.ask("greedy", f"g{number}") for number in range(6)]
    await settle()
    tasks += [one.ask("modest", "m0"), one.ask("modest", "m1"), one.ask("other", "o0")]
    await settle()
    await one.end_all(tasks)
    assert one.done == ["g0", "m0", "o0", "g1", "m1", "g2", "g3", "g4", "g5"]


async def test_a_free_slot_goes_to_the_client_that_has_the_fewest() -> None:
    one = clients(3, 100)
    tasks = [one.ask("greedy", f"g{number}") for number in range(6)]
    await settle()
    assert one.running == ["g0", "g1", "g2"]
    tasks += [one.ask("modest", f"m{number}") for number in range(3)]
    await settle()
    await one.end("g0")
    assert one.running == ["g1", "g2", "m0"]
    await one.end("m0")
    assert one.running == ["g1", "g2", "m1"]
    await one.end_all(tasks)


async def test_one_client_alone_has_all_slots_and_no_more_than_its_share_of_the_queue() -> None:
    one = clients(2, 4, Share(waiting=2))
    tasks = [one.ask("greedy", f"g{number}") for number in range(10)]
    await settle()
    assert one.running == ["g0", "g1"]
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 6
    with pytest.raises(TooBusy, match="NIXERY_MAX_QUEUED_PER_CLIENT"):
        await refused[0]
    modest = one.ask("modest", "m0")
    await settle()
    assert not modest.done()
    await one.end_all([*tasks, modest])
    assert "m0" in one.done


async def test_a_share_of_the_slots_leaves_the_others_free() -> None:
    one = clients(3, 100, Share(running=2))
    tasks = [one.ask("greedy", f"g{number}") for number in range(5)]
    await settle()
    assert one.running == ["g0", "g1"]
    tasks.append(one.ask("modest", "m0"))
    await settle()
    assert one.running == ["g0", "g1", "m0"]
    await one.end("m0")
    assert one.running == ["g0", "g1"]
    await one.end_all(tasks)
    assert len(one.done) == 6


async def test_a_full_queue_displaces_work_of_the_client_with_the_most_places() -> None:
    one = clients(1, 4)
    tasks = [one.ask("greedy", f"g{number}") for number in range(5)]
    await settle()
    modest = [one.ask("modest", "m0"), one.ask("other", "o0"), one.ask("third", "t0")]
    await settle()
    # The newest ones, and only until the client has as many places as the others.
    assert [task.done() for task in tasks] == [False, False, True, True, True]
    with pytest.raises(TooBusy, match="took this one's place"):
        await tasks[4]
    fourth = one.ask("fourth", "f0")
    await settle()
    with pytest.raises(TooBusy, match="NIXERY_MAX_QUEUED"):
        await fourth
    await one.end_all([*tasks, *modest])
    assert one.done == ["g0", "m0", "o0", "t0", "g1"]


async def test_unattended_work_is_displaced_first() -> None:
    one = clients(1, 3)
    tasks = [one.ask("greedy", "g0"), one.ask("greedy", "posted", awaited=False)]
    await settle()
    tasks += [one.ask("greedy", "g1"), one.ask("greedy", "g2")]
    await settle()
    tasks.append(one.ask("modest", "m0"))
    await settle()
    assert [task.done() for task in tasks] == [False, True, False, False, False]
    await one.end_all(tasks)


async def test_joined_work_uses_the_turn_of_the_client_that_is_next() -> None:
    one = clients(1, 100)
    flight: SingleFlight[str, None] = SingleFlight()

    def shared(name: str) -> Callable[[], Awaitable[None]]:
        return lambda: flight.run(name, lambda: one.work(name))

    tasks = [one.ask_for("greedy", shared(f"g{number}"), awaited=False) for number in range(6)]
    await settle()
    # A greedy client has requested all popular images; a modest one must not wait behind all of them.
    tasks.append(one.ask_for("modest", shared("g5")))
    await settle()
    assert one.positions["g5"] == [5, 1]
    await one.end("g0")
    assert one.running == ["g5"]
    await one.end_all(tasks)
    assert len(one.done) == 6


async def test_joining_through_other_shared_work_counts() -> None:
    one = clients(1, 100)
    outer: SingleFlight[str, None] = SingleFlight()
    inner: SingleFlight[str, None] = SingleFlight()

    def shared(name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            await inner.run(name, lambda: one.work(name))

        return lambda: outer.run(name, work)

    tasks = [one.ask_for("greedy", shared(f"g{number}")) for number in range(6)]
    await settle()
    tasks.append(one.ask_for("modest", shared("g5")))
    await settle()
    await one.end("g0")
    assert one.running == ["g5"]
    await one.end_all(tasks)


async def test_work_joined_by_a_modest_client_is_not_displaced() -> None:
    one = clients(1, 3)
    flight: SingleFlight[str, None] = SingleFlight()
    tasks = [one.ask("greedy", f"g{number}") for number in range(3)]
    await settle()
    joined = [
        one.ask_for(client, lambda: flight.run("shared", lambda: one.work("shared")))
        for client in ("greedy", "modest")
    ]
    await settle()
    third = one.ask("third", "t0")
    await settle()
    assert [task.done() for task in (*tasks, *joined)] == [False, False, True, False, False]
    await one.end_all([*tasks, *joined, third])
    assert {"shared", "t0"} <= set(one.done)


async def test_clients_that_join_each_other_do_not_block_others() -> None:
    one = clients(1, 4)
    flight: SingleFlight[str, None] = SingleFlight()
    tasks = [one.ask("first", "begin")]
    await settle()
    tasks += [
        one.ask_for(client, lambda name=name: flight.run(name, lambda: one.work(name)))  # type: ignore[misc]
        for name in "abcd"
        for client in ("first", "second")
    ]
    await settle()
    modest = one.ask("modest", "m0")
    await settle()
    assert not modest.done()
    await one.end_all([*tasks, modest])
    assert "m0" in one.done


async def test_cancelled_work_leaves_every_queue() -> None:
    one = clients(1, 1)
    for _ in range(3):
        first = one.ask("first", "a")
        await settle()
        waiting = one.ask("second", "b")
        await settle()
        waiting.cancel()
        await asyncio.wait({waiting})
        await one.end("a")
        await first
    assert one.slots._queues == {}
    assert one.slots._waiting == {}
    assert one.slots._running.total() == 0


async def test_the_wait_is_estimated_from_work_that_has_ended() -> None:
    now = 0.0
    slots = Slots(2, 10, lambda: now)
    assert slots.wait(1) is None
    async with slots.slot():
        now = 60.0
    assert [slots.wait(position) for position in (1, 2, 3)] == [30.0, 60.0, 90.0]
