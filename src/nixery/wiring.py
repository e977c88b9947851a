"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import nixery
from nixery.errors import SettingsError, StorageError
from nixery.fetching.directory import DirectorySource
from nixery.fetching.fingerprint import Fingerprint
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.native_platform import native_platform
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.oci.canonical_json import canonical_json
from nixery.packing.compression import Gzip
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.image_builder import LAYER_BUDGET, ImageBuilder
from nixery.pipeline.images import Images
from nixery.pipeline.indexes import Indexes
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.pipeline.pins import Pins
from nixery.pipeline.shared_builds import SharedBuilds
from nixery.process_directory import ProcessDirectory
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.server.rsgi import Application
from nixery.server.serve import listening_address
from nixery.settings import Settings
from nixery.storage.catalogue import Catalogue
from nixery.storage.files import make_directory
from nixery.storage.filesystem import FilesystemBlobStore, FilesystemRecordStore
from nixery.storage.popularity import load_popularity
from nixery.storage.small_blobs import SmallBlobs

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Wired:
    """The application, and what has to be closed before it is stopped.

    Attributes:
        close: ends all builds.
    """

    application: Application
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that can go wrong before the first request, done.

    Attributes:
        address: to bind; the host's name is resolved.
        platforms: what a name stands for that does not begin with a platform.
    """

    address: str
    platforms: tuple[Platform, ...]
    popularity: Popularity
    temporary: ProcessDirectory
    roots: ProcessDirectory
    blobs: FilesystemBlobStore
    records: FilesystemRecordStore


def prepare(settings: Settings) -> Prepared:
    """Look for all that the settings name. Blocks, and so can be interrupted.

    Raises:
        SettingsError: with every problem there is.
    """
    storage = settings.storage_path
    problems: list[str] = []
    popularity = _try(
        problems,
        lambda: load_popularity(settings.popularity_url) if settings.popularity_url else Popularity(),
    )
    _try(problems, lambda: make_directory(storage))
    usable = storage.is_dir()
    temporary = _try(problems, lambda: ProcessDirectory(storage / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(storage / "gc-roots")) if usable else None
    address = _try(problems, lambda: listening_address(settings.host, settings.port))
    if popularity is None or temporary is None or roots is None or address is None:
        for directory in filter(None, (temporary, roots)):
            directory.close()
        raise SettingsError(tuple(problems))
    blobs = FilesystemBlobStore(storage, temporary.path)
    records = FilesystemRecordStore(storage, temporary.path)
    platforms = settings.platforms or (native_platform(),)
    return Prepared(address, platforms, popularity, temporary, roots, blobs, records)


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None


def _identity(packer: LayerPacker, popularity: Popularity) -> str:
    """What decides on an image besides its package set and its name; this program too, down to the last character."""
    program = Fingerprint().of(Path(nixery.__file__).parent)
    return canonical_json([program, packer.identity, LAYER_BUDGET, popularity.counts]).decode()


@asynccontextmanager
async def wire(settings: Settings, prepared: Prepared) -> AsyncIterator[Wired]:
    """Put everything together; take it apart when the context ends."""
    blobs, records = prepared.blobs, prepared.records
    roots = GarbageCollectorRoots(prepared.roots.path)
    source = DirectorySource(settings.package_set)
    pins = Pins(source, records, settings.pin_ttl)
    nix = SubprocessNixBuilder(settings.nix_timeout, roots)
    packer = LayerPacker(Gzip())
    cache = BuildCache(records, blobs, _identity(packer, prepared.popularity))
    executor = ThreadPoolExecutor(settings.packing_workers, thread_name_prefix="packing")
    layers = LayerPublisher(blobs, records, packer, executor)
    builder = ImageBuilder(source, nix, layers, blobs, prepared.popularity)
    builds = SharedBuilds(cache, builder, LoggingObserver())
    images = Images(pins, builds, Indexes(builds, blobs, frozenset(settings.optional_platforms)))
    catalogue = Catalogue(records)
    registry = Registry(
        Manifests(images, blobs, catalogue, prepared.platforms),
        Blobs(blobs, SmallBlobs(blobs)),
        Discovery(catalogue),
    )

    async def close() -> None:
        await asyncio.gather(layers.close(), images.close())

    try:
        yield Wired(Application(registry), close)
    finally:
        await close()
        executor.shutdown(cancel_futures=True)
        prepared.roots.close()
        prepared.temporary.close()
