"""Indexes of images for several platforms, in a real storage, with a fake of the builds."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from nixery.builds.events import Build
from nixery.builds.image import Image
from nixery.builds.images import Images, Indexes
from nixery.builds.pins import Pinned
from nixery.errors import (
    BuildFailed,
    InvalidName,
    NixeryError,
    PackageSetChanged,
    PlatformFailed,
    ShuttingDown,
)
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.oci.documents import ExecutionParameters, docker_manifest, image_config, image_manifest
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, StoredFile
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

    async def image(
        self,
        request: ImageRequest,
        pin: Pin,
        tag: str | None = None,  # noqa: ARG002 -- for reports
        *,
        may_build: bool = True,
    ) -> Image:
        assert pin.source == "fake:"
        assert may_build
        self.asked += 1
        if error := self.errors.get(request.platform):
            raise error
        config = image_config(request.platform.architecture, ExecutionParameters(), [])
        return Image(image_manifest(config, []), docker_manifest(config, []))


class World:
    def __init__(self, blobs: BlobStore, records: RecordStore) -> None:
        self.blobs = blobs
        self.leases = Leases(records, 3600)
        self.builds = FakeBuilds()
        self.now = 0.0

    def indexes(self, *optional: Platform) -> Indexes:
        return Indexes(self.builds, self.blobs, self.leases, frozenset(optional), lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
def world(blobs: BlobStore, records: RecordStore) -> World:
    return World(blobs, records)


async def test_an_index_is_stored_in_both_families_of_media_types(world: World) -> None:
    index = await world.indexes().index(REQUESTS, PIN)
    assert index.docker_index is not None
    for document in (index.index, index.docker_index):
        blob = await world.blobs.find(document.descriptor.digest)
        assert blob is not None
        assert await world.blobs.read(blob) == document.content


async def test_a_lost_index_is_stored_again(world: World) -> None:
    indexes = world.indexes()
    index = await indexes.index(REQUESTS, PIN)
    blob = await world.blobs.find(index.index.descriptor.digest)
    assert isinstance(blob, StoredFile)
    blob.path.unlink()
    world.now += 2
    await indexes.index(REQUESTS, PIN)
    assert await world.blobs.find(index.index.descriptor.digest) == blob


async def test_an_incomplete_index_is_served_for_ten_minutes(world: World) -> None:
    indexes = world.indexes(ARM64)
    world.builds.errors = {ARM64: FAILED}
    incomplete = await indexes.index(REQUESTS, PIN)
    world.builds.errors = {}
    world.now += 599
    assert await indexes.index(REQUESTS, PIN) == incomplete
    world.now += 2
    assert await indexes.index(REQUESTS, PIN) != incomplete


async def test_an_incomplete_index_is_retried_for_another_pin(world: World) -> None:
    indexes = world.indexes(ARM64)
    world.builds.errors = {ARM64: FAILED}
    incomplete = await indexes.index(REQUESTS, PIN)
    world.builds.errors = {}
    assert await indexes.index(REQUESTS, Pin("fake:", "two", "two")) != incomplete


async def test_the_error_names_the_platform_that_failed(world: World) -> None:
    world.builds.errors = {ARM64: FAILED}
    with pytest.raises(PlatformFailed) as raised:
        await world.indexes(AMD64).index(REQUESTS, PIN)
    assert (raised.value.platform, raised.value.error) == ("linux/arm64", FAILED)


async def test_a_reason_that_all_platforms_share_is_reported_once(world: World) -> None:
    world.builds.errors = {AMD64: FAILED, ARM64: FAILED}
    with pytest.raises(BuildFailed):
        await world.indexes(AMD64, ARM64).index(REQUESTS, PIN)


async def test_a_shutdown_is_an_error_even_for_an_optional_platform(world: World) -> None:
    world.builds.errors = {ARM64: ShuttingDown()}
    with pytest.raises(ShuttingDown):
        await world.indexes(ARM64).index(REQUESTS, PIN)


class ChangingSource:
    """Stands in for ``Pins``: each replaced pin is followed by another one."""

    def __init__(self) -> None:
        self.state = 1
        self.is_outdated = False

    def _pin(self) -> Pin:
        return Pin("fake:", str(self.state), str(self.state))

    async def pin(self, tag: str) -> Pinned:
        assert tag == "latest"
        return Pinned(self._pin())

    def selects(self, tag: str) -> bool:
        assert tag
        return False

    async def replace(self, tag: str, outdated: Pin) -> Pinned:
        assert (tag, outdated) == ("latest", self._pin())
        self.state += 1
        return Pinned(self._pin())

    async def confirmed(self, tag: str) -> Pin:
        pinned = await self.pin(tag)
        return (await self.replace(tag, pinned.pin)).pin if self.is_outdated else pinned.pin


class BuildsOfPins(FakeBuilds):
    """Fails for the pins of a package set that has changed."""

    def __init__(self, changed: Collection[str] = ()) -> None:
        super().__init__()
        self.changed = changed
        self.begun: list[Build] = []

    async def image(
        self,
        request: ImageRequest,
        pin: Pin,
        tag: str | None = None,  # noqa: ARG002 -- for reports
        *,
        may_build: bool = True,
    ) -> Image:
        if pin.identity in self.changed:
            raise PackageSetChanged
        return await super().image(request, pin, may_build=may_build)

    async def begin(self, request: ImageRequest, pin: Pin, tag: str | None = None) -> Build:  # noqa: ARG002 -- for reports
        self.begun.append(Build.of(request, pin))
        return self.begun[-1]


def images(pins: ChangingSource, builds: BuildsOfPins, world: World) -> Images:
    return Images(pins, builds, world.indexes(), 3)  # type: ignore[arg-type]


async def test_a_build_is_retried_with_the_next_pin_when_the_package_set_changes(world: World) -> None:
    found = await images(ChangingSource(), BuildsOfPins(["1", "2"]), world).get(REQUESTS[:1], "latest")
    assert found.pinned.pin.identity == "3"
    assert isinstance(found.image, Image)


async def test_a_package_set_that_keeps_changing_is_an_error(world: World) -> None:
    with pytest.raises(PackageSetChanged):
        await images(ChangingSource(), BuildsOfPins(["1", "2", "3", "4"]), world).get(REQUESTS[:1], "latest")


async def test_an_image_of_a_source_without_versions_is_listed_as_latest(world: World) -> None:
    assert (await images(ChangingSource(), BuildsOfPins(), world).get(REQUESTS[:1], "latest")).tag == "latest"


async def test_a_build_is_begun_for_each_platform_with_a_pin_that_is_still_available(world: World) -> None:
    source, builds = ChangingSource(), BuildsOfPins()
    source.is_outdated = True
    begun = await images(source, builds, world).begin(REQUESTS, "latest")
    assert begun == builds.begun
    assert [(build.request.platform, build.pin.identity) for build in begun] == [(AMD64, "2"), (ARM64, "2")]


async def test_a_name_with_too_many_packages_is_rejected_before_anything_is_built(world: World) -> None:
    builds = BuildsOfPins()
    many = requests_for("a/b/c/d", (AMD64,))
    for ask in (images(ChangingSource(), builds, world).get, images(ChangingSource(), builds, world).begin):
        with pytest.raises(
            InvalidName, match=r"asks for 4 packages, and 3 is the limit \(NIXERY_MAX_PACKAGES\)"
        ):
            await ask(many, "latest")
    assert (builds.asked, builds.begun) == (0, [])
