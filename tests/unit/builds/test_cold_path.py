"""The path of a cold manifest by tag, from the request handler to the first process."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import pytest

from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBounds, ImageBuilder
from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.creation_date import CreationDate
from nixery.builds.evaluation_cache import EvaluationCache
from nixery.builds.evaluator import Evaluator
from nixery.builds.image_closure import ImageClosures
from nixery.builds.images import Images, Indexes
from nixery.builds.layers import LayerPublisher, Packing
from nixery.builds.pins import Pins
from nixery.builds.provision import Provider
from nixery.builds.slots import Slots
from nixery.errors import NixUnusable
from nixery.image.platform import AMD64
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.options import NixOptions
from nixery.nix.realisation import Nix, TimeLimits
from nixery.packing.compression import compression
from nixery.packing.packer import LayerPacker
from nixery.server.http import Request
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.sources.directory import DirectorySource
from nixery.storage.blobs import BlobStore
from nixery.storage.catalogue import Catalogue
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore

# From the request handler to the process call; of these, up to the seam to Nix.
_MOST_FRAMES = 12
_MOST_ABOVE_NIX = 6


def running_frames(frame: FrameType | None) -> Iterator[str]:
    """Functions on the stack of the running task, the innermost first."""
    while frame is not None:
        yield from name_of(frame)
        frame = frame.f_back


def awaiting_frames(coroutine: Coroutine[Any, Any, Any] | None) -> Iterator[str]:
    """Functions of a suspended task, the outermost first."""
    while isinstance(coroutine, CoroutineType):
        if coroutine.cr_frame is not None:
            yield from name_of(coroutine.cr_frame)
        coroutine = coroutine.cr_await


def name_of(frame: FrameType) -> Iterator[str]:
    module = frame.f_globals.get("__name__", "")
    if module.startswith("nixery."):
        yield f"{module}:{frame.f_code.co_qualname}"


async def test_a_cold_manifest_passes_few_frames_on_its_way_to_the_process(
    tmp_path: Path,
    records: RecordStore,
    blobs: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("set", "roots"):
        (tmp_path / name).mkdir()
    leases = Leases(records, 3600)
    source = DirectorySource(tmp_path / "set", {})
    options = NixOptions((), None)
    nix = Nix(TimeLimits(5, 5), NixGarbageCollector(tmp_path / "state", tmp_path / "roots"), options)
    layers = LayerPublisher(
        blobs, records, Packing(LayerPacker(compression("gzip")), 1, FileLocks(tmp_path / "locks"))
    )
    evaluator = Evaluator(source, nix, EvaluationCache(records, ""))
    builder = ImageBuilder(
        evaluator,
        Provider(nix),
        layers,
        blobs,
        leases,
        ImageClosures(records),
        Popularity(),
        ImageBounds(94),
        CreationDate(),
    )
    builds = BuildCoordinator(BuildCache(records, blobs, leases, ""), builder, (), BuildBounds(Slots(1, 1)))
    images = Images(Pins(source, records, 3600), builds, Indexes(builds, blobs, leases), 100)
    catalogue = Catalogue(records)
    manifests = Manifests(images, blobs, leases, catalogue, Permissions(catalogue, blobs, [AMD64]))

    found: list[str] = []

    async def create_subprocess_exec(program: str, *_: object, **__: object) -> None:
        if program != "nix-instantiate":
            raise FileNotFoundError(errno.ENOENT, "not found")  # git, which the source does not need
        inner = list(running_frames(sys._getframe(1)))[::-1]
        outer = [*awaiting_frames(request.get_coro())]  # type: ignore[arg-type]
        found.extend([*outer, *inner])
        raise FileNotFoundError(errno.ENOENT, "not found")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_subprocess_exec)
    request = asyncio.create_task(
        manifests.get(Request("GET", "/v2/hello/manifests/latest"), "hello", "latest")
    )
    with pytest.raises(NixUnusable):
        await request
    assert found[0].endswith("Manifests.get")
    assert len(found) <= _MOST_FRAMES, found
    above = [frame for frame in found if not frame.startswith("nixery.nix.")]
    assert len(above) <= _MOST_ABOVE_NIX, above
    await images.close()
    await layers.close()
