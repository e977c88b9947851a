"""Retries of builds, with fakes of Nix and of the source."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nixery.builds.builder import ImageBounds, ImageBuilder, _BlobsLostError, _Retries
from nixery.builds.creation_date import CreationDate
from nixery.errors import (
    BuildError,
    BuildFailed,
    InvalidName,
    NixUnusable,
    PackageSetChanged,
    PathsCollected,
    RequestError,
    StorageError,
    StorageFull,
)
from nixery.image.name import parse_image_name
from nixery.layering.popularity import Popularity
from nixery.oci.documents import ExecutionParameters
from nixery.sources.source import Pin, Reference

PIN = Pin("fake:", "one", "one")
COLLECTED = PathsCollected("/nix/store/x")


class World:
    """Stands in for Nix and for the package source."""

    def __init__(self) -> None:
        self.paused = 0
        self.is_paused = False
        self.confirmed: list[Pin] = []
        self.has_changed = False

    @asynccontextmanager
    async def collector_paused(self) -> AsyncIterator[Callable[[], None]]:
        self.paused += 1
        self.is_paused = True
        try:
            yield self.resume
        finally:
            self.is_paused = False

    def resume(self) -> None:
        self.is_paused = False

    async def require_reachable(self, reference: Reference) -> None:
        raise NotImplementedError(reference)

    async def confirm(self, pin: Pin) -> None:
        self.confirmed.append(pin)
        if self.has_changed:
            raise PackageSetChanged

    async def build(self, errors: Sequence[Exception]) -> int:
        """Build, with an error in each of the first attempts; return the number of attempts."""
        retries = _Retries(self, self, PIN)  # type: ignore[arg-type]
        left = list(errors)
        number = 0
        while True:
            try:
                async with retries.collector_paused() as resume_collector:
                    number += 1
                    if left:
                        raise left.pop(0)
                    resume_collector()
                    assert not self.is_paused
                    return number
            except (_BlobsLostError, RequestError, BuildError) as error:
                await retries.handle(error)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_attempt_does_not_pause_the_collector(world: World) -> None:
    assert await world.build([]) == 1
    assert world.paused == 0


async def test_a_build_whose_paths_are_collected_is_retried_with_a_paused_collector(world: World) -> None:
    assert await world.build([COLLECTED] * 5) == 6
    assert (world.paused, world.is_paused) == (5, False)


async def test_a_build_whose_paths_are_collected_at_every_attempt_fails(world: World) -> None:
    with pytest.raises(PathsCollected):
        await world.build([COLLECTED] * 6)
    assert world.paused == 5


async def test_a_disturbed_builder_is_retried_once(world: World) -> None:
    disturbed = BuildFailed("x.drv", (), "no", disturbed=True)
    assert await world.build([disturbed]) == 2
    with pytest.raises(BuildFailed):
        await world.build([disturbed, disturbed])
    with pytest.raises(BuildFailed):
        await world.build([BuildFailed("x.drv", (), "no")])


async def test_a_build_whose_blobs_are_deleted_is_retried_twice(world: World) -> None:
    assert await world.build([_BlobsLostError(), _BlobsLostError()]) == 3
    with pytest.raises(StorageError, match="stored blobs keep disappearing"):
        await world.build([_BlobsLostError()] * 3)
    assert world.confirmed == []


@pytest.mark.parametrize("error", [NixUnusable("no"), InvalidName("x", "no")])
async def test_a_failed_build_confirms_its_pin(world: World, error: Exception) -> None:
    with pytest.raises(type(error)):
        await world.build([error])
    assert world.confirmed == [PIN]
    world.has_changed = True
    with pytest.raises(PackageSetChanged):
        await world.build([error])


async def test_an_error_of_the_storage_says_nothing_about_the_pin(world: World) -> None:
    with pytest.raises(StorageFull):
        await world.build([StorageFull("full")])
    assert world.confirmed == []


@pytest.mark.security
async def test_documents_of_an_image_are_written_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their texts are of package authors, who may write megabytes."""
    threads: list[threading.Thread] = []

    def annotations(*_: object) -> dict[str, str]:
        threads.append(threading.current_thread())
        raise StorageFull

    monkeypatch.setattr("nixery.builds.builder.image_annotations", annotations)
    nothing: Any = None
    builder = ImageBuilder(
        nothing, nothing, nothing, nothing, nothing, nothing, Popularity(), ImageBounds(10), CreationDate()
    )
    with pytest.raises(StorageFull):
        await builder._store(parse_image_name("git"), PIN, (), ExecutionParameters(), ())
    assert threads
    assert threading.current_thread() not in threads
