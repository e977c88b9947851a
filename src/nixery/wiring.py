"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nixery.layering.popularity import Popularity
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.packing.compression import Gzip
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.server.asgi import Application
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.settings import Settings
from nixery.storage.filesystem import FilesystemBlobStore, FilesystemRecordStore
from nixery.storage.popularity import load_popularity


@dataclass(frozen=True, slots=True)
class Wired:
    """The application, and the builder that has to be closed before it is stopped."""

    application: Application
    builder: ImageBuilder


@asynccontextmanager
async def wire(settings: Settings) -> AsyncIterator[Wired]:
    """Put everything together; take it apart when the context ends.

    Raises:
        SettingsError: the popularity data cannot be had.
        StorageError: the storage cannot be used.
    """
    popularity = Popularity()
    if settings.popularity_url is not None:
        popularity = await asyncio.to_thread(load_popularity, settings.popularity_url)
    blobs = FilesystemBlobStore(settings.storage_path)
    records = FilesystemRecordStore(settings.storage_path)
    roots = GarbageCollectorRoots(settings.storage_path / "gc-roots")
    nix = SubprocessNixBuilder(settings.package_set, settings.nix_timeout, roots)
    executor = ThreadPoolExecutor(settings.packing_workers, thread_name_prefix="packing")
    layers = LayerPublisher(blobs, records, LayerPacker(Gzip()), executor)
    builder = ImageBuilder(nix, layers, blobs, popularity, LoggingObserver())
    registry = Registry(Manifests(builder, blobs), Blobs(blobs))
    try:
        yield Wired(Application(registry), builder)
    finally:
        await builder.close()
        executor.shutdown(cancel_futures=True)
        roots.close()
