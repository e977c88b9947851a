"""The builder and the observer are made up."""

from __future__ import annotations

import asyncio

import pytest

from nixery.errors import BuildFailed, NixeryError, PackageSetChanged, ShuttingDown, StorageError
from nixery.image.request import ImageRequest, parse_image_name
from nixery.oci.docker import docker_manifest
from nixery.oci.image import ExecutionParameters, image_config, image_manifest
from nixery.pipeline.events import Build, BuildEvent, Failed, Requested, Started
from nixery.pipeline.image import Image
from nixery.pipeline.layer_publisher import Observe
from nixery.pipeline.shared_builds import SharedBuilds
from nixery.sources.source import Pin

PIN = Pin("fake:", "one", "one")
REQUEST = parse_image_name("git")


class World:
    """Stands in for ``ImageBuilder`` and ``BuildObserver``."""

    def __init__(self) -> None:
        self.builds = 0
        self.error: NixeryError | None = None
        self.now = 0.0
        self.told: list[tuple[Build, BuildEvent]] = []
        self.hold: asyncio.Event | None = None

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        assert (pin.source, observe is not None) == ("fake:", True)
        self.builds += 1
        if self.hold:
            await self.hold.wait()
        if self.error:
            raise self.error
        config = image_config(request.platform.architecture, ExecutionParameters(), [])
        return Image(image_manifest(config, []), docker_manifest(config, []))

    def observe(self, build: Build, event: BuildEvent) -> None:
        self.told.append((build, event))

    def shared_builds(self, failure_time_to_live: float = 30) -> SharedBuilds:
        return SharedBuilds(None, self, self, failure_time_to_live, lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_failure_is_the_answer_for_a_while(world: World) -> None:
    builds = world.shared_builds()
    world.error = BuildFailed("git.drv", ("no",), "failed")
    for _ in range(5):
        with pytest.raises(BuildFailed) as raised:
            await builds.image(REQUEST, PIN)
        assert raised.value is world.error
    assert world.builds == 1
    world.error = None
    world.now += 31
    await builds.image(REQUEST, PIN)


async def test_it_is_the_failure_of_one_image_and_one_state(world: World) -> None:
    builds = world.shared_builds()
    world.error = BuildFailed("git.drv", (), "failed")
    with pytest.raises(BuildFailed):
        await builds.image(REQUEST, PIN)
    world.error = None
    await builds.image(parse_image_name("htop"), PIN)
    await builds.image(REQUEST, Pin("fake:", "two", "two"))


@pytest.mark.parametrize("error", [ShuttingDown(), PackageSetChanged(), StorageError("full")])
async def test_what_may_have_passed_is_tried_again(world: World, error: NixeryError) -> None:
    builds = world.shared_builds()
    world.error = error
    with pytest.raises(type(error)):
        await builds.image(REQUEST, PIN)
    world.error = None
    await builds.image(REQUEST, PIN)


async def test_zero_tries_each_time(world: World) -> None:
    builds = world.shared_builds(0)
    world.error = BuildFailed("git.drv", (), "failed")
    for _ in range(2):
        with pytest.raises(BuildFailed):
            await builds.image(REQUEST, PIN)
    assert world.builds == 2


async def test_a_build_that_nobody_waits_for_is_one_with_those_that_somebody_does(world: World) -> None:
    builds = world.shared_builds()
    one = builds.begin(REQUEST, PIN)
    assert builds.begin(REQUEST, PIN) is one
    await builds.image(REQUEST, PIN)
    assert world.builds == 1
    assert {build.id for build, _ in world.told} == {one.id}
    assert [type(event) for _, event in world.told] == [Requested, Started]
    assert builds.begin(REQUEST, PIN).id != one.id
    await builds.close()


async def test_a_failure_says_which_build_it_was(world: World) -> None:
    builds = world.shared_builds()
    world.error = BuildFailed("git.drv", ("no",), "failed")
    one = builds.begin(REQUEST, PIN)
    for _ in range(2):
        with pytest.raises(BuildFailed) as raised:
            await builds.image(REQUEST, PIN)
        assert raised.value.build == one.id
    assert builds.begin(REQUEST, PIN) == one
    assert world.builds == 1


async def test_a_build_that_is_ended_has_failed(world: World) -> None:
    builds = world.shared_builds()
    world.hold = asyncio.Event()
    one = builds.begin(REQUEST, PIN)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await builds.close()
    (failed,) = [event for build, event in world.told if build == one and isinstance(event, Failed)]
    assert isinstance(failed.error, ShuttingDown)
