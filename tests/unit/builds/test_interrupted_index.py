"""An index whose evaluation is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from nixery.builds.index_records import PART
from nixery.builds.package_index import PackageIndex
from nixery.image.platform import AMD64, Platform
from nixery.image.spelling import RESERVED
from nixery.nix.indexing import AttributePath, Reported
from nixery.sources.source import Pin
from nixery.storage.records import RecordStore

PIN = Pin("fake:", "one", "one")


class World:
    """Stands in for the source, for Nix and for its evaluation, which never ends by itself.

    The first process ends at once when it is cancelled, the others take a while, as Nix may.
    """

    def __init__(self) -> None:
        self.running: list[asyncio.Event] = []
        self.both_run = asyncio.Event()

    def watch(self, watcher: Callable[[Pin, bool], None]) -> None:
        """No tag gets another pin."""
        assert callable(watcher)

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[None]:
        assert pin == PIN
        yield

    async def indexing(
        self, platform: Platform, package_set: None, *, write_derivations: bool = False
    ) -> World:
        # Of 1001 attributes, derivations are written; a list of names writes none anyway.
        assert (platform, package_set) == (AMD64, None)
        assert isinstance(write_derivations, bool)
        return self

    async def names(self, sets: Sequence[AttributePath]) -> list[list[str] | None]:
        assert sets == [(), (RESERVED,)]
        return [[f"name{number}" for number in range(PART + 1)], None]

    async def describe(
        self, paths: Sequence[AttributePath], report: Callable[[Reported], None], most_failures: int
    ) -> None:
        assert paths
        assert callable(report)
        assert most_failures
        ended = asyncio.Event()
        is_slow = bool(self.running)
        self.running.append(ended)
        if is_slow:
            self.both_run.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100 if is_slow else 0):
                await asyncio.sleep(0)
            ended.set()


async def test_an_interrupted_index_ends_after_all_its_processes(records: RecordStore) -> None:
    world = World()
    index = PackageIndex(world, world, world, AMD64, records, "program", processes=2)  # type: ignore[arg-type]
    evaluation = asyncio.ensure_future(index.evaluate(PIN))
    running = asyncio.ensure_future(world.both_run.wait())
    await asyncio.wait((evaluation, running), return_when=asyncio.FIRST_COMPLETED)
    assert not evaluation.done()
    evaluation.cancel()
    with suppress(asyncio.CancelledError):
        await evaluation
    assert [ended.is_set() for ended in world.running] == [True, True]
    await index.close()
