"""Whose turn it is when several clients want slots, and who is sent away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context

import pytest

from nixery.builds.slots import Share, Slots
from nixery.caching import SingleFlight
from nixery.errors import TooBusy
from nixery.request_context import Client, Parties, RequestContext, enter_parties, enter_request


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class World:
    """Clients with work that takes as long as the test says."""

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
        await settled()

    async def end_all(self, tasks: list[asyncio.Task[None]]) -> None:
        while self.running:
            await self.end(self.running[0])
        await asyncio.gather(*tasks, return_exceptions=True)


def world(limit: int, queue: int, share: Share | None = None) -> World:
    return World(Slots(limit, queue, lambda: 0.0, share=share or Share()))


async def test_clients_take_turns_and_each_is_served_in_its_own_order() -> None:
    one = world(1, 100)
    tasks = [one.ask("greedy", f"g{number}") for number in range(6)]
    await settled()
    tasks += [one.ask("modest", "m0"), one.ask("modest", "m1"), one.ask("other", "o0")]
    await settled()
    await one.end_all(tasks)
    assert one.done == ["g0", "m0", "o0", "g1", "m1", "g2", "g3", "g4", "g5"]


async def test_a_free_slot_goes_to_the_client_that_has_the_fewest() -> None:
    one = world(3, 100)
    tasks = [one.ask("greedy", f"g{number}") for number in range(6)]
    await settled()
    assert one.running == ["g0", "g1", "g2"]
    tasks += [one.ask("modest", f"m{number}") for number in range(3)]
    await settled()
    await one.end("g0")
    assert one.running == ["g1", "g2", "m0"]
    await one.end("m0")
    assert one.running == ["g1", "g2", "m1"]
    await one.end_all(tasks)


async def test_one_client_alone_has_all_slots_and_no_more_than_its_share_of_the_queue() -> None:
    one = world(2, 4, Share(waiting=2))
    tasks = [one.ask("greedy", f"g{number}") for number in range(10)]
    await settled()
    assert one.running == ["g0", "g1"]
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 6
    with pytest.raises(TooBusy, match="NIXERY_MAX_QUEUED_PER_CLIENT"):
        await refused[0]
    modest = one.ask("modest", "m0")
    await settled()
    assert not modest.done()
    await one.end_all([*tasks, modest])
    assert "m0" in one.done


async def test_a_share_of_the_slots_leaves_the_others_free() -> None:
    one = world(3, 100, Share(running=2))
    tasks = [one.ask("greedy", f"g{number}") for number in range(5)]
    await settled()
    assert one.running == ["g0", "g1"]
    tasks.append(one.ask("modest", "m0"))
    await settled()
    assert one.running == ["g0", "g1", "m0"]
    await one.end("m0")
    assert one.running == ["g0", "g1"]
    await one.end_all(tasks)
    assert len(one.done) == 6


async def test_a_full_queue_gives_place_to_who_has_less_of_it() -> None:
    one = world(1, 4)
    tasks = [one.ask("greedy", f"g{number}") for number in range(5)]
    await settled()
    modest = [one.ask("modest", "m0"), one.ask("other", "o0"), one.ask("third", "t0")]
    await settled()
    # Those that came last, and never more of them than leaves it as many as the others have.
    assert [task.done() for task in tasks] == [False, False, True, True, True]
    with pytest.raises(TooBusy, match="gave way"):
        await tasks[4]
    fourth = one.ask("fourth", "f0")
    await settled()
    with pytest.raises(TooBusy, match="NIXERY_MAX_QUEUED"):
        await fourth
    await one.end_all([*tasks, *modest])
    assert one.done == ["g0", "m0", "o0", "t0", "g1"]


async def test_what_no_request_waits_for_gives_way_first() -> None:
    one = world(1, 3)
    tasks = [one.ask("greedy", "g0"), one.ask("greedy", "posted", awaited=False)]
    await settled()
    tasks += [one.ask("greedy", "g1"), one.ask("greedy", "g2")]
    await settled()
    tasks.append(one.ask("modest", "m0"))
    await settled()
    assert [task.done() for task in tasks] == [False, True, False, False, False]
    await one.end_all(tasks)


async def test_work_that_was_joined_has_the_turn_of_whoever_is_next() -> None:
    one = world(1, 100)
    flight: SingleFlight[str, None] = SingleFlight()

    def shared(name: str) -> Callable[[], Awaitable[None]]:
        return lambda: flight.run(name, lambda: one.work(name))

    tasks = [one.ask_for("greedy", shared(f"g{number}"), awaited=False) for number in range(6)]
    await settled()
    # A greedy client has asked for all that anybody wants, and modest ones are not to wait behind all of it.
    tasks.append(one.ask_for("modest", shared("g5")))
    await settled()
    assert one.positions["g5"] == [5, 1]
    await one.end("g0")
    assert one.running == ["g5"]
    await one.end_all(tasks)
    assert len(one.done) == 6


async def test_joining_by_way_of_other_work_counts_too() -> None:
    one = world(1, 100)
    outer: SingleFlight[str, None] = SingleFlight()
    inner: SingleFlight[str, None] = SingleFlight()

    def shared(name: str) -> Callable[[], Awaitable[None]]:
        return lambda: outer.run(name, lambda: inner.run(name, lambda: one.work(name)))

    tasks = [one.ask_for("greedy", shared(f"g{number}")) for number in range(6)]
    await settled()
    tasks.append(one.ask_for("modest", shared("g5")))
    await settled()
    await one.end("g0")
    assert one.running == ["g5"]
    await one.end_all(tasks)


async def test_work_that_a_modest_client_joined_does_not_give_way() -> None:
    one = world(1, 3)
    flight: SingleFlight[str, None] = SingleFlight()
    tasks = [one.ask("greedy", f"g{number}") for number in range(3)]
    await settled()
    joined = [
        one.ask_for(client, lambda: flight.run("shared", lambda: one.work("shared")))
        for client in ("greedy", "modest")
    ]
    await settled()
    third = one.ask("third", "t0")
    await settled()
    assert [task.done() for task in (*tasks, *joined)] == [False, False, True, False, False]
    await one.end_all([*tasks, *joined, third])
    assert {"shared", "t0"} <= set(one.done)


async def test_clients_that_join_each_others_work_keep_nobody_out() -> None:
    one = world(1, 4)
    flight: SingleFlight[str, None] = SingleFlight()
    tasks = [one.ask("first", "begin")]
    await settled()
    tasks += [
        one.ask_for(client, lambda name=name: flight.run(name, lambda: one.work(name)))  # type: ignore[misc]
        for name in "abcd"
        for client in ("first", "second")
    ]
    await settled()
    modest = one.ask("modest", "m0")
    await settled()
    assert not modest.done()
    await one.end_all([*tasks, modest])
    assert "m0" in one.done


async def test_places_that_are_given_up_are_given_up_in_every_queue() -> None:
    one = world(1, 1)
    for _ in range(3):
        first = one.ask("first", "a")
        await settled()
        waiting = one.ask("second", "b")
        await settled()
        waiting.cancel()
        await asyncio.wait({waiting})
        await one.end("a")
        await first
    assert one.slots._queues == {}
    assert one.slots._waiting == {}
    assert one.slots._running.total() == 0
