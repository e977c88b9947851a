"""With a real store; the builds are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.builds.image import Image
from nixery.builds.images import Indexes
from nixery.errors import BuildFailed, NixeryError, PlatformFailed, ShuttingDown
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.oci.documents import ExecutionParameters, docker_manifest, image_config, image_manifest
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, StoredFile
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore

PIN = Pin("fake:", "one", "one")
REQUESTS = requests_for("hello", (AMD64, ARM64))
FAILED = BuildFailed("hello.drv", (), "no")


class FakeBuilds:
    """Stands in for ``BuildCoordinator``: an image or an error for each platform."""

    def __init__(self) -> None:
        self.errors: dict[Platform, NixeryError] = {}
        self.asked = 0

    async def image(self, request: ImageRequest, pin: Pin) -> Image:
        assert pin.source == "fake:"
        self.asked += 1
        if error := self.errors.get(request.platform):
            raise error
        config = image_config(request.platform.architecture, ExecutionParameters(), [])
        return Image(image_manifest(config, []), docker_manifest(config, []))


class World:
    def __init__(self, directory: Path) -> None:
        (directory / "temporary").mkdir()
        self.blobs = BlobStore(FilesystemDriver(directory, directory / "temporary"))
        self.uses = Leases(RecordStore(FilesystemDriver(directory, directory / "temporary")), 3600)
        self.builds = FakeBuilds()
        self.now = 0.0

    def indexes(self, *optional: Platform) -> Indexes:
        return Indexes(self.builds, self.blobs, self.uses, frozenset(optional), lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_both_families_are_stored(world: World) -> None:
    index = await world.indexes().index(REQUESTS, PIN)
    assert index.docker_index is not None
    for document in (index.index, index.docker_index):
        blob = await world.blobs.find(document.descriptor.digest)
        assert blob is not None
        assert await world.blobs.read(blob) == document.content


async def test_an_index_that_is_lost_is_stored_again(world: World) -> None:
    indexes = world.indexes()
    index = await indexes.index(REQUESTS, PIN)
    blob = await world.blobs.find(index.index.descriptor.digest)
    assert isinstance(blob, StoredFile)
    blob.path.unlink()
    world.now += 2
    await indexes.index(REQUESTS, PIN)
    assert await world.blobs.find(index.index.descriptor.digest) == blob


async def test_an_incomplete_index_is_one_for_ten_minutes(world: World) -> None:
    indexes = world.indexes(ARM64)
    world.builds.errors = {ARM64: FAILED}
    incomplete = await indexes.index(REQUESTS, PIN)
    world.builds.errors = {}
    world.now += 599
    assert await indexes.index(REQUESTS, PIN) == incomplete
    world.now += 2
    assert await indexes.index(REQUESTS, PIN) != incomplete


async def test_another_state_of_the_source_is_another_chance(world: World) -> None:
    indexes = world.indexes(ARM64)
    world.builds.errors = {ARM64: FAILED}
    incomplete = await indexes.index(REQUESTS, PIN)
    world.builds.errors = {}
    assert await indexes.index(REQUESTS, Pin("fake:", "two", "two")) != incomplete


async def test_the_platform_is_named(world: World) -> None:
    world.builds.errors = {ARM64: FAILED}
    with pytest.raises(PlatformFailed) as raised:
        await world.indexes(AMD64).index(REQUESTS, PIN)
    assert (raised.value.platform, raised.value.error) == ("linux/arm64", FAILED)


async def test_one_reason_is_told_without_platforms(world: World) -> None:
    world.builds.errors = {AMD64: FAILED, ARM64: FAILED}
    with pytest.raises(BuildFailed):
        await world.indexes(AMD64, ARM64).index(REQUESTS, PIN)


async def test_optional_does_not_mean_that_stopping_is_an_answer(world: World) -> None:
    world.builds.errors = {ARM64: ShuttingDown()}
    with pytest.raises(ShuttingDown):
        await world.indexes(ARM64).index(REQUESTS, PIN)
