"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nixery
from nixery.fetching.channel import ChannelSource
from nixery.fetching.directory import DirectorySource
from nixery.fetching.fingerprint import Fingerprint
from nixery.fetching.flake import FlakeSource
from nixery.fetching.git import GitSource
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.nix_store import NixStore
from nixery.nix.builder import NixExpression
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.options import NixOptions
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.oci.canonical_json import canonical_json
from nixery.packing.compression import compression
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.build_history import BuildHistory
from nixery.pipeline.evaluation_cache import EvaluationCache
from nixery.pipeline.evaluator import Evaluator
from nixery.pipeline.events import BuildObserver, Observers
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.image_description import ImageDescriptions
from nixery.pipeline.images import Images
from nixery.pipeline.indexes import Indexes
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.pipeline.package_index import PackageIndex
from nixery.pipeline.pins import Pins
from nixery.pipeline.shared_builds import SharedBuilds
from nixery.pipeline.warming import Warming
from nixery.preparation import Prepared
from nixery.server.api.builds import Builds
from nixery.server.api.images import ImageDocuments
from nixery.server.api.packages import Packages
from nixery.server.api.router import Api
from nixery.server.pages.router import Pages
from nixery.server.published_builds import PublishedBuilds
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.server.rsgi import Application
from nixery.settings import Settings
from nixery.sources.source import PackageSource
from nixery.storage.catalogue import Catalogue
from nixery.storage.small_blobs import SmallBlobs
from nixery.storage.store import BlobStore


@dataclass(frozen=True, slots=True)
class Wired:
    """What a command works with.

    Attributes:
        application: what is served.
        close: ends all builds, which has to be done before the server is stopped.
    """

    application: Application
    images: Images
    blobs: BlobStore
    close: Callable[[], Awaitable[None]]


def _package_source(settings: Settings, prepared: Prepared, store: NixStore) -> PackageSource:
    storage, temporary, environment = settings.storage_path, prepared.temporary.path, settings.environment
    if settings.package_set is not None:
        return DirectorySource(settings.package_set, environment)
    if settings.repository is not None:
        return GitSource(settings.repository, storage / "sources", temporary, store, environment)
    if settings.channel is not None:
        names = GitRepository(settings.channel_repository, storage / "sources", environment)
        return ChannelSource(settings.channel, settings.channel_tags, settings.channel_url, names, store)
    if settings.flake is not None:
        return FlakeSource(settings.flake, store)
    raise AssertionError("the settings have one source")


def _nix_options(settings: Settings) -> NixOptions:
    return NixOptions(
        every_command=settings.nix_arguments,
        sandbox=None if settings.nix_sandbox == "auto" else settings.nix_sandbox == "on",
        import_from_derivation=settings.allow_ifd,
        environment=settings.evaluation_environment,
        memory=settings.evaluation_memory * 1024 * 1024 or None,
    )


@asynccontextmanager
async def wire(
    settings: Settings,
    prepared: Prepared,
    expression: NixExpression | None = None,
    observer: BuildObserver | None = None,
) -> AsyncIterator[Wired]:
    """Put everything together; take it apart when the context ends.

    Args:
        settings: of the process.
        prepared: for these settings.
        expression: what the command line adds to the package set. The server never has one.
        observer: of builds; ``None`` for the log.
    """
    blobs, records = prepared.blobs, prepared.records
    roots = GarbageCollectorRoots(prepared.roots.path)
    source = _package_source(settings, prepared, NixStore(roots))
    pins = Pins(source, records, settings.pin_ttl, failure_time_to_live=settings.failure_ttl)
    options = _nix_options(settings)
    nix = SubprocessNixBuilder(settings.nix_timeout, roots, options, expression)
    packer = LayerPacker(compression(settings.compression, settings.compression_level))
    # What an expression refers to, nobody can tell; so it is evaluated each time.
    program = Fingerprint().of(Path(nixery.__file__).parent)
    evaluation = canonical_json([program, options.identity]).decode()
    identity = canonical_json(
        [evaluation, packer.identity, settings.layer_budget, prepared.popularity.counts]
    ).decode()
    evaluations = EvaluationCache(records, evaluation) if expression is None else None
    cache = BuildCache(records, blobs, identity) if expression is None else None
    executor = ThreadPoolExecutor(settings.packing_workers, thread_name_prefix="packing")
    layers = LayerPublisher(blobs, records, packer, executor)
    evaluator = Evaluator(source, nix, evaluations)
    builder = ImageBuilder(evaluator, nix, layers, blobs, prepared.popularity, settings.layer_budget)
    history = BuildHistory(records)
    observers = Observers(observer or LoggingObserver(), history)
    builds = SharedBuilds(cache, builder, observers, settings.failure_ttl)
    images = Images(pins, builds, Indexes(builds, blobs, frozenset(settings.optional_platforms)))
    catalogue = Catalogue(records)
    registry = Registry(
        Manifests(images, blobs, catalogue, prepared.platforms),
        Blobs(blobs, SmallBlobs(blobs)),
        Discovery(catalogue),
        log_links=settings.public_builds,
    )
    index = PackageIndex(pins, source, nix, records, evaluation, prepared.platforms[0])
    descriptions = ImageDescriptions(pins, cache, evaluator, blobs, history)
    published = PublishedBuilds(history, public=settings.public_builds)
    api = Api(
        Packages(index),
        Builds(published, Warming(pins, source, builds), prepared.platforms),
        ImageDocuments(descriptions, prepared.platforms, compare=settings.public_builds),
    )
    pages = Pages(index, published, descriptions, prepared.platforms)
    history.start()

    async def close() -> None:
        await asyncio.gather(layers.close(), images.close(), index.close())
        await history.close()

    try:
        yield Wired(Application(registry, api, pages), images, blobs, close)
    finally:
        await close()
        executor.shutdown(cancel_futures=True)
        prepared.roots.close()
        prepared.temporary.close()
