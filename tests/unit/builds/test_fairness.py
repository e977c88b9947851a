"""How long clients wait for their builds beside one that requests without end, counted in rounds of builds."""

from __future__ import annotations

import asyncio
from contextvars import Context

import pytest

from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.events import Build, BuildEvent, Observe
from nixery.builds.image import Image
from nixery.builds.slots import Share, Slots
from nixery.errors import TooBusy
from nixery.image.name import ImageRequest, parse_image_name
from nixery.oci.documents import ExecutionParameters, image_config, image_manifest
from nixery.request_context import Client, RequestContext, enter_request
from nixery.sources.source import Pin
from tests.support.event_loop import settle

_PIN = Pin("fake:", "one", "one")
_MODEST, _EACH = 20, 3


class Rounds:
    """A builder whose builds all take one round, and the clients of its coordinator."""

    def __init__(self, slots: int) -> None:
        self.round = 0
        self.waits: list[int] = []
        self._ended = asyncio.Event()
        self._started: dict[tuple[str, ...], int] = {}
        bounds = BuildBounds(Slots(slots, 100, lambda: float(self.round), share=Share(waiting=50)))
        self._builds = BuildCoordinator(None, self, [self], bounds)  # type: ignore[arg-type]

    def observe(self, build: Build, event: BuildEvent) -> None: ...

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        assert (pin, observe is not None) == (_PIN, True)
        self._started[request.requested] = self.round
        await self._ended.wait()
        config = image_config(request.platform.architecture, ExecutionParameters(), [])
        return Image(image_manifest(config, []), None)

    async def next(self) -> None:
        await settle()
        self.round += 1
        self._ended.set()
        self._ended = asyncio.Event()
        await settle()

    def start(self, client: str, number: int) -> asyncio.Task[None]:
        """Start a client."""

        async def run() -> None:
            enter_request(RequestContext(client, Client(client)))
            await (self._greedy(number) if client == "greedy" else self._modest(client))

        return asyncio.get_running_loop().create_task(run(), context=Context())

    async def _modest(self, client: str) -> None:
        for number in range(_EACH):
            request, asked = parse_image_name(f"{client}-{number}"), self.round
            await self._builds.image(request, _PIN)
            self.waits.append(self._started[request.requested] - asked)

    async def _greedy(self, number: int) -> None:
        image = 0
        while True:
            image += 1
            request = parse_image_name(f"greedy-{number}-{image}")
            try:
                await (self._builds.image(request, _PIN) if number % 2 else self._builds.begin(request, _PIN))
            except TooBusy:
                await self._ended.wait()

    async def run(self, greedy: int) -> None:
        """Run all modest clients to their end, beside one that has some requests open all the time."""
        others = [self.start("greedy", number) for number in range(greedy)]
        await settle()
        modest = [self.start(f"modest-{number}", number) for number in range(_MODEST)]
        while not all(task.done() for task in modest):
            await self.next()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*modest)
        await self._builds.close()


@pytest.mark.parametrize("slots", [1, 4])
async def test_a_greedy_client_at_most_doubles_the_time_that_twenty_others_wait(slots: int) -> None:
    alone, beside = Rounds(slots), Rounds(slots)
    await alone.run(0)
    await beside.run(200)
    assert len(alone.waits) == len(beside.waits) == _MODEST * _EACH
    assert sum(beside.waits) <= 2 * sum(alone.waits), (sum(beside.waits), sum(alone.waits))
    assert max(beside.waits) <= 2 * max(alone.waits)
