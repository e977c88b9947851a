"""The source is made up, the pins are not."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from nixery.builds.pins import BoundedSource, Pins
from nixery.builds.slots import Slots
from nixery.errors import TooBusy
from nixery.nix.packages import PackageSet
from nixery.sources.source import Pin, Reference
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore


class SlowSource:
    """Counts who asks at once."""

    description = "fake:"

    def __init__(self) -> None:
        self.asking = self.most = 0
        self.answers = asyncio.Event()

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=True)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        self.asking += 1
        self.most = max(self.most, self.asking)
        await self.answers.wait()
        self.asking -= 1
        return Pin("fake:", reference.name, reference.name)

    async def confirm(self, pin: Pin) -> None:
        raise NotImplementedError(pin)

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        raise NotImplementedError(pin)


class World:
    def __init__(self, storage: Path) -> None:
        (storage / "temporary").mkdir()
        self.source = SlowSource()
        self.now = 1_000_000.0
        records = RecordStore(FilesystemDriver(storage, storage / "temporary"))
        self.pins = Pins(
            BoundedSource(self.source, Slots(2, 1), Slots(2, 1)), records, 3600, lambda: self.now
        )

    def ask(self, *tags: str) -> list[asyncio.Future[object]]:
        return [asyncio.ensure_future(self.pins.pin(tag)) for tag in tags]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_so_many_look_ups_at_once_and_so_many_wait(world: World) -> None:
    asked = world.ask("a", "b", "c", "d", "e")
    await asyncio.sleep(0.05)
    assert [one.done() for one in asked] == [False, False, False, True, True]
    same = world.ask("a", "b", "c")
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in same)
    world.source.answers.set()
    await asyncio.gather(*asked[:3], *same)
    assert world.source.most == 2
    for one in asked[3:]:
        with pytest.raises(TooBusy):
            await one
    await world.pins.close()


async def test_an_old_pin_is_better_than_none(world: World) -> None:
    world.source.answers.set()
    await world.pins.pin("old")
    world.source.answers.clear()
    world.now += 7200
    others = world.ask("a", "b", "c")
    await asyncio.sleep(0.05)
    pinned = await asyncio.wait_for(world.pins.pin("old"), 2)
    assert pinned.pin.identity == "old"
    assert "busy" in (pinned.warning or "")
    world.source.answers.set()
    await asyncio.gather(*others)
    await world.pins.close()
