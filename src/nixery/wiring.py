"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from nixery.errors import SettingsError, StorageError
from nixery.layering.popularity import Popularity
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.packing.compression import Gzip
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.process_directory import ProcessDirectory
from nixery.server.asgi import Application
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.server.serve import listening_address
from nixery.settings import Settings
from nixery.storage.catalogue import Catalogue
from nixery.storage.files import make_directory
from nixery.storage.filesystem import FilesystemBlobStore, FilesystemRecordStore
from nixery.storage.popularity import load_popularity

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Wired:
    """The application, and the builder that has to be closed before it is stopped."""

    application: Application
    builder: ImageBuilder


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that can go wrong before the first request, done.

    Attributes:
        address: to bind; the host's name is resolved.
    """

    address: str
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
    return Prepared(address, popularity, temporary, roots, blobs, records)


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None


@asynccontextmanager
async def wire(settings: Settings, prepared: Prepared) -> AsyncIterator[Wired]:
    """Put everything together; take it apart when the context ends."""
    blobs, records = prepared.blobs, prepared.records
    roots = GarbageCollectorRoots(prepared.roots.path)
    nix = SubprocessNixBuilder(settings.package_set, settings.nix_timeout, roots)
    executor = ThreadPoolExecutor(settings.packing_workers, thread_name_prefix="packing")
    layers = LayerPublisher(blobs, records, LayerPacker(Gzip()), executor)
    builder = ImageBuilder(nix, layers, blobs, prepared.popularity, LoggingObserver())
    catalogue = Catalogue(records)
    registry = Registry(Manifests(builder, blobs, catalogue), Blobs(blobs), Discovery(catalogue))
    try:
        yield Wired(Application(registry), builder)
    finally:
        await builder.close()
        executor.shutdown(cancel_futures=True)
        prepared.roots.close()
        prepared.temporary.close()
