"""The path of a cold manifest by tag, from the request handler to the first process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import pytest

from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBounds, ImageBuilder
from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.evaluation_cache import EvaluationCache, Evaluator
from nixery.builds.images import Images, Indexes
from nixery.builds.layers import LayerPublisher, Packing
from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.errors import NixUnusable
from nixery.image.platform import AMD64
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks
from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots
from nixery.nix.options import NixOptions
from nixery.nix.realisation import SubprocessNixBuilder
from nixery.packing.compression import compression
from nixery.packing.packer import LayerPacker
from nixery.server.http import Request
from nixery.server.registry.manifests import Manifests
from nixery.sources.directory import DirectorySource
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore
from nixery.storage.uses import Leases

# A dozen from the handler to the process call, plus what is left above it in nixery.nix.
_MOST_FRAMES = 99


class _Observer:
    def observe(self, build: object, event: object) -> None: ...


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
        yield f"{module}:{frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name}"


async def test_a_cold_manifest_passes_few_frames_on_its_way_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("temporary", "set", "roots"):
        (tmp_path / name).mkdir()
    blobs = FilesystemBlobStore(tmp_path, tmp_path / "temporary")
    records = FilesystemRecordStore(tmp_path, tmp_path / "temporary")
    uses = Leases(records, 3600)
    source = DirectorySource(tmp_path / "set", {})
    options = NixOptions((), None)
    nix = SubprocessNixBuilder(
        5, GarbageCollectorRoots(tmp_path / "roots"), options, CollectorLock(tmp_path / "state")
    )
    layers = LayerPublisher(
        blobs, records, Packing(LayerPacker(compression("gzip")), 1, FileLocks(tmp_path / "locks"))
    )
    evaluator = Evaluator(source, nix, EvaluationCache(records, ""))
    builder = ImageBuilder(evaluator, nix, layers, blobs, uses, Popularity(), ImageBounds(94))
    builds = BuildCoordinator(
        BuildCache(records, blobs, uses, ""), builder, _Observer(), BuildBounds(Slots(1, 1))
    )
    images = Images(Pins(source, records, 3600), builds, Indexes(builds, blobs, uses), 100)
    manifests = Manifests(images, blobs, uses, Catalogue(records), [AMD64])

    found: list[str] = []

    async def create_subprocess_exec(*_: object, **__: object) -> None:
        inner = list(running_frames(sys._getframe(1)))[::-1]
        outer = [*awaiting_frames(request.get_coro())]  # type: ignore[arg-type]
        found.extend([*outer, *inner])
        raise FileNotFoundError(2, "not found")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_subprocess_exec)
    request = asyncio.create_task(manifests.get(Request("GET", "/v2/hello/manifests/latest"), "hello", "latest"))
    with pytest.raises(NixUnusable):
        await request
    print("\n".join(found))
    assert found[0].endswith("Manifests.get")
    assert len(found) <= _MOST_FRAMES, found
    await images.close()
    await layers.close()
