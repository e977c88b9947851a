"""Events of builds, as metrics tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    Joined,
    LayerPacked,
    LayerReused,
    LayersComplete,
    Queued,
    Realised,
    Reused,
    Started,
    Stored,
)
from nixery.errors import (
    BlobVerificationFailed,
    BuildFailed,
    EvaluationFailed,
    NixeryError,
    PackagesUnavailable,
    ShuttingDown,
)
from nixery.image.name import parse_image_name
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, Layer, MediaType
from nixery.sources.source import Pin
from nixery.telemetry.metrics import BuildMetrics
from nixery.telemetry.stages import Stages

REQUEST = parse_image_name("git")
PIN = Pin("fake:", "one", "one")
DIGEST = Digest.of(b"")
PACKING = (Started(), Evaluated(()), Realised(1, 1), Grouped(1), LayersComplete())
DONE = (*PACKING, Stored(DIGEST, 1))


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.metrics = BuildMetrics(self.registry)
        self.stages = Stages([self.metrics], lambda: self.now)

    def observe(self, build: Build, event: BuildEvent) -> None:
        for observer in (self.metrics, self.stages):
            observer.observe(build, event)

    async def build(self, events: Sequence[BuildEvent], end: Callable[[], None] = lambda: None) -> None:
        """In a task of its own, as every build is."""

        build = Build.of(REQUEST, PIN)

        async def task() -> None:
            for event in events:
                self.observe(build, event)
                self.now += 1
                await asyncio.sleep(0)
            end()

        await asyncio.gather(asyncio.ensure_future(task()), return_exceptions=True)
        await asyncio.sleep(0)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"nixery_{name}", labels)

    def ended(self) -> dict[str, float]:
        (family,) = [family for family in self.registry.collect() if family.name == "nixery_builds"]
        return {s.labels["outcome"]: s.value for s in family.samples if s.value and "_total" in s.name}


@pytest.fixture
def world() -> World:
    return World()


async def test_a_build_that_goes_well(world: World) -> None:
    await world.build(DONE)
    assert world.ended() == {"built": 1}
    for stage in ("evaluate", "realise", "group", "pack", "store"):
        assert world.value("build_stage_duration_seconds_sum", stage=stage) == 1, stage
    assert world.value("build_stage_duration_seconds_count", stage="queue") == 0
    assert world.value("builds_running") == 0


async def test_running_and_queued(world: World) -> None:
    seen: list[tuple[float | None, float | None]] = []

    def look() -> None:
        seen.append((world.value("builds_queued"), world.value("builds_running")))

    await world.build((Queued(2), Queued(1)), look)
    await world.build((Queued(1), Started()), look)
    assert seen == [(1, 0), (0, 1)]
    assert (world.value("builds_queued"), world.value("builds_running")) == (0, 0)
    assert world.value("build_stage_duration_seconds_sum", stage="queue") == 2 + 1


async def test_builds_for_one_request_at_the_same_time_are_kept_apart(world: World) -> None:
    await asyncio.gather(world.build(DONE), world.build(DONE[:-1]), world.build((Queued(1), Reused(DIGEST))))
    assert world.ended() == {"built": 1, "cancelled": 1, "found": 1}
    assert world.value("builds_running") == 0


async def test_builds_are_kept_apart_whichever_task_tells_of_them(world: World) -> None:
    """Who leaves the queue tells the others their new positions."""
    one, other = Build.of(REQUEST, PIN), Build.of(REQUEST, PIN)
    for build, event in ((one, Queued(1)), (other, Queued(2)), (one, Started()), (other, Queued(1))):
        world.observe(build, event)
    assert (world.value("builds_queued"), world.value("builds_running")) == (1, 1)
    world.observe(other, Reused(DIGEST))
    world.observe(one, Stored(DIGEST, 1))
    assert (world.value("builds_queued"), world.value("builds_running")) == (0, 0)
    assert world.ended() == {"built": 1, "found": 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PackagesUnavailable(()), "unavailable"),
        (BuildFailed("x.drv", (), "no"), "failed"),
        (EvaluationFailed(()), "evaluation_failed"),
        (BlobVerificationFailed("no"), "storage_error"),
        (ShuttingDown(), "cancelled"),
        (NixeryError("new"), "other"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 5])
async def test_failures(world: World, error: NixeryError, outcome: str, before: int) -> None:
    await world.build((*DONE[:before], Failed(error)))
    assert world.ended() == {outcome: 1}
    assert (world.value("builds_queued"), world.value("builds_running")) == (0, 0)


async def test_a_defect_in_a_build_leaves_none_running(world: World) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    await world.build(PACKING, fail)
    assert world.ended() == {"cancelled": 1}
    assert world.value("builds_running") == 0


async def test_layers_and_those_who_join(world: World) -> None:
    layer = Layer(Descriptor(MediaType.OCI_LAYER_GZIP, DIGEST, 42), DIGEST, packages=())
    for event in (LayerPacked(layer), LayerPacked(layer), LayerReused(layer), Joined("one")):
        world.observe(Build.of(REQUEST, PIN), event)
    assert world.value("packed_bytes_total") == 84
    assert (world.metrics.layers.hits, world.metrics.layers.misses) == (1, 2)
    assert world.value("builds_joined_total") == 1
    assert world.ended() == {}
