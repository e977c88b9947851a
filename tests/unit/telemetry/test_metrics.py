"""Metrics of builds, requests and processes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

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
from nixery.telemetry.metrics import BuildMetrics, Metrics, NixProcesses, RequestCounts
from nixery.telemetry.stages import Stages
from scripts.reference.metrics import render

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
        """In a separate task, like every build."""

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


async def test_a_successful_build_is_counted_with_its_stages(world: World) -> None:
    await world.build(DONE)
    assert world.ended() == {"built": 1}
    for stage in ("evaluate", "realise", "group", "pack", "store"):
        assert world.value("build_stage_duration_seconds_sum", stage=stage) == 1, stage
    assert world.value("build_stage_duration_seconds_count", stage="queue") == 0
    assert world.value("builds_running") == 0


async def test_running_and_queued_builds_are_gauges(world: World) -> None:
    seen: list[tuple[float | None, float | None]] = []

    def look() -> None:
        seen.append((world.value("builds_queued"), world.value("builds_running")))

    await world.build((Queued(2), Queued(1)), look)
    await world.build((Queued(1), Started()), look)
    assert seen == [(1, 0), (0, 1)]
    assert (world.value("builds_queued"), world.value("builds_running")) == (0, 0)
    assert world.value("build_stage_duration_seconds_sum", stage="queue") == 2 + 1


async def test_concurrent_builds_of_one_image_are_counted_separately(world: World) -> None:
    await asyncio.gather(world.build(DONE), world.build(DONE[:-1]), world.build((Queued(1), Reused(DIGEST))))
    assert world.ended() == {"built": 1, "cancelled": 1, "found": 1}
    assert world.value("builds_running") == 0


async def test_events_from_the_task_of_another_build_are_counted_for_the_right_one(world: World) -> None:
    """A build that leaves the queue changes the positions of the others."""
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
async def test_a_failed_build_is_counted_by_its_outcome(
    world: World, error: NixeryError, outcome: str, before: int
) -> None:
    await world.build((*DONE[:before], Failed(error)))
    assert world.ended() == {outcome: 1}
    assert (world.value("builds_queued"), world.value("builds_running")) == (0, 0)


async def test_a_build_that_ends_without_an_event_is_not_running(world: World) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    await world.build(PACKING, fail)
    assert world.ended() == {"cancelled": 1}
    assert world.value("builds_running") == 0


async def test_layers_and_joined_requests_are_counted(world: World) -> None:
    layer = Layer(Descriptor(MediaType.OCI_LAYER_GZIP, DIGEST, 42), DIGEST, packages=())
    for event in (LayerPacked(layer), LayerPacked(layer), LayerReused(layer), Joined("one")):
        world.observe(Build.of(REQUEST, PIN), event)
    assert world.value("packed_bytes_total") == 84
    assert (world.metrics.layers.hits, world.metrics.layers.misses) == (1, 2)
    assert world.value("builds_joined_total") == 1
    assert world.ended() == {}


def counted() -> tuple[RequestCounts, CollectorRegistry]:
    counts, registry = RequestCounts(), CollectorRegistry()
    registry.register(counts)
    return counts, registry


def test_requests_are_counted_with_durations_and_bytes() -> None:
    counts, registry = counted()
    counts.add("GET", "blob", 200, 0.0005, 100)
    counts.add("GET", "blob", 200, 0.001, 11)
    counts.add("GET", "blob", 206, 4.0, 0)
    counts.add("HEAD", "blob", 200, 9999.0, 0)
    labels = {"method": "GET", "route": "blob", "status": "200"}
    assert registry.get_sample_value("nixery_http_requests_total", labels) == 2
    assert registry.get_sample_value("nixery_served_bytes_total", {"route": "blob"}) == 111

    def bucket(bound: str) -> float | None:
        name = "nixery_http_request_duration_seconds_bucket"
        return registry.get_sample_value(name, {"route": "blob", "le": bound})

    # Bounds are inclusive, and buckets are cumulative.
    assert [bucket(bound) for bound in ("0.001", "1.0", "5.0", "1800.0", "+Inf")] == [2, 2, 3, 3, 4]
    total = registry.get_sample_value("nixery_http_request_duration_seconds_sum", {"route": "blob"})
    assert total == 0.0005 + 0.001 + 4 + 9999


def test_made_up_methods_share_one_series() -> None:
    counts, registry = counted()
    for number in range(100):
        counts.add(f"METHOD{number}", "other", 405, 0, 0)
    labels = {"method": "other", "route": "other", "status": "405"}
    assert registry.get_sample_value("nixery_http_requests_total", labels) == 100


def test_running_commands_of_nix_are_counted(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(NixProcesses())

    def number() -> float | None:
        return registry.get_sample_value("nixery_nix_processes")

    before = number()
    assert before is not None
    children = []
    for name in ("nix-store", "other"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho started; read line\n")
        program.chmod(0o755)
        children.append(subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
    assert number() == before + 1
    for child in children:
        child.communicate(b"\n", timeout=10)
    assert number() == before


def test_the_reference_has_every_metric() -> None:
    table = render()
    exported = [
        line.split()[2] for line in Metrics().text().decode().splitlines() if line.startswith("# TYPE ")
    ]
    assert [name for name in exported if f"| `{name}` |" not in table] == []
    assert "| `nixery_cache_hits_total` | counter | `cache`: `pin`," in table
    assert "`stage`: `queue`, `evaluate`, `realise`, `group`, `pack`, `store` |" in table
