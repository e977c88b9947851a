"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nixery
from nixery.errors import TagUnknown, TooBusy
from nixery.fetching.fingerprint import Fingerprint
from nixery.fetching.nix_store import NixStore
from nixery.nix.builder import NixExpression
from nixery.nix.collector_lock import CollectorLock
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.health import require_usable_nix
from nixery.nix.package_graph import SubprocessPackageGraph
from nixery.nix.subprocess_builder import SubprocessNixBuilder
from nixery.observability.counted_storage import CountedBlobStore, CountedRecordStore
from nixery.observability.metrics import Metrics
from nixery.observability.stages import Stages
from nixery.oci.canonical_json import canonical_json
from nixery.packing.compression import compression
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.batch_records import BatchRecords
from nixery.pipeline.bounded_source import BoundedSource
from nixery.pipeline.build_cache import BuildCache
from nixery.pipeline.build_history import BuildHistory
from nixery.pipeline.evaluation_cache import EvaluationCache
from nixery.pipeline.evaluator import Evaluator
from nixery.pipeline.events import BuildObserver
from nixery.pipeline.image_builder import ImageBounds, ImageBuilder
from nixery.pipeline.image_description import ImageDescriptions
from nixery.pipeline.images import Images
from nixery.pipeline.indexes import Indexes
from nixery.pipeline.layer_publisher import LayerPublisher, Packing
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.pipeline.observers import Observers
from nixery.pipeline.package_index import PackageIndex
from nixery.pipeline.package_listing import PackageListing
from nixery.pipeline.pins import Pins
from nixery.pipeline.reference_counting import BATCH_TIMEOUT, ReferenceCounting
from nixery.pipeline.shared_builds import BuildBounds, SharedBuilds
from nixery.pipeline.slots import Share, Slots
from nixery.pipeline.warming import Warming
from nixery.preparation import Prepared
from nixery.server.clients import Clients
from nixery.server.health import Health
from nixery.server.observation import Observation
from nixery.server.probes import MetricsPage, Probes, is_loopback
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.server.rsgi import Application
from nixery.settings import Settings
from nixery.storage.catalogue import Catalogue
from nixery.storage.small_blobs import SmallBlobs
from nixery.storage.store import BlobStore
from nixery.storage.uses import Uses
from nixery.wiring.nix import look_ahead, nix_options, package_source
from nixery.wiring.pages import pages
from nixery.wiring.traces import make_traces
from nixery.wiring.upkeep import upkeep

__all__ = ["Wired", "wire"]


@dataclass(frozen=True, slots=True)
class Wired:
    """The parts of a server that commands use.

    Attributes:
        application: the server's routes.
        close: ends all builds; call it before stopping the server.
        index: of the names of packages.
        counting: of references across the package set.
        ahead: reads data in advance; no request depends on it, but it makes the first one faster.
        admin: health and metrics, for a listener of their own.
    """

    application: Application
    images: Images
    blobs: BlobStore
    pins: Pins
    evaluator: Evaluator
    index: PackageIndex
    close: Callable[[], Awaitable[None]]
    counting: ReferenceCounting
    ahead: asyncio.Task[None]
    admin: Application


@asynccontextmanager
async def wire(  # noqa: PLR0915 -- one statement for each part, from the bottom to the top
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
    metrics = Metrics()
    traces = make_traces(settings)
    blobs = CountedBlobStore(prepared.blobs, metrics.storage_errors)
    records = CountedRecordStore(prepared.records, metrics.storage_errors)
    roots = GarbageCollectorRoots(prepared.roots.path)
    collector = CollectorLock(Path(settings.environment.get("NIX_STATE_DIR", "/nix/var/nix")))
    source = package_source(settings, prepared, NixStore(roots, collector, settings.build_environment))
    # Looking tags up has slots of its own: nobody waits there for somebody else's build.
    share = Share(settings.max_builds_per_client, settings.queued_per_client)
    look_ups, histories = (
        Slots(settings.max_builds, settings.max_queued, busy=TooBusy.LOOKUPS, share=share) for _ in range(2)
    )
    bounded = BoundedSource(source, look_ups, histories)
    pins = Pins(bounded, records, settings.pin_ttl, failure_time_to_live=settings.failure_ttl)
    options = nix_options(settings, sandbox=prepared.sandbox)
    nix = SubprocessNixBuilder(
        settings.nix_timeout, roots, options, collector, expression, gate=prepared.gate
    )
    packer = LayerPacker(compression(settings.compression, settings.compression_level))
    # What an expression refers to, nobody can tell; so it is evaluated each time.
    program = Fingerprint().of(Path(nixery.__file__).parent)
    evaluation = canonical_json([program, options.identity]).decode()
    identity = canonical_json(
        [evaluation, packer.identity, settings.layer_budget, prepared.popularity.identity]
    ).decode()
    evaluations = EvaluationCache(records, evaluation) if expression is None else None
    uses = Uses(records, settings.storage_grace)
    cache = BuildCache(records, blobs, uses, identity) if expression is None else None
    layers = LayerPublisher(blobs, records, Packing(packer, settings.packing_workers, prepared.locks))
    evaluator = Evaluator(source, nix, evaluations)
    image_bounds = ImageBounds(settings.layer_budget, settings.max_closure or None)
    builder = ImageBuilder(evaluator, nix, layers, blobs, uses, prepared.popularity, image_bounds)
    history = BuildHistory(records)
    observers = Observers(
        observer or LoggingObserver(),
        history,
        metrics.builds,
        Stages([metrics.builds, traces] if traces else [metrics.builds]),
        *([traces] if traces else []),
    )
    slots = Slots(settings.max_builds, settings.max_queued, share=share)
    build_bounds = BuildBounds(slots, settings.build_timeout)
    builds = SharedBuilds(cache, builder, observers, build_bounds, settings.failure_ttl)
    indexes = Indexes(builds, blobs, uses, frozenset(settings.optional_platforms))
    images = Images(pins, builds, indexes, settings.max_packages)
    counting = ReferenceCounting(
        pins,
        source,
        SubprocessPackageGraph(max(settings.nix_timeout, BATCH_TIMEOUT), roots, options, collector),
        BatchRecords(records, evaluation),
        settings.max_builds,
    )
    catalogue = Catalogue(records)
    small_blobs = SmallBlobs(blobs)
    counted = {"pin": pins, "image": cache, "evaluation": evaluations, "blob": small_blobs}
    metrics.watch({kind: kept.counts for kind, kept in counted.items() if kept is not None})
    registry = Registry(
        Manifests(images, blobs, uses, catalogue, prepared.platforms),
        Blobs(blobs, small_blobs, uses, redirect=settings.blob_delivery != "proxy"),
        Discovery(catalogue, public=settings.public_builds),
        log_links=settings.public_builds,
    )
    listing = PackageListing(source, nix, prepared.platforms[0], settings.failure_ttl)
    index = PackageIndex(pins, listing, records, evaluation)
    below = pages(
        settings,
        prepared,
        index,
        ImageDescriptions(pins, cache, evaluator, blobs, history),
        history,
        Warming(pins, bounded, builds, settings.max_packages),
    )

    async def source_is_usable() -> None:
        try:
            await pins.require_known("latest")
        except TagUnknown:
            return  # it was asked, and has no such tag

    health = Health(
        {
            "storage": blobs.probe,
            "nix": partial(asyncio.to_thread, require_usable_nix),
            "source": source_is_usable,
        }
    )

    async def close() -> None:
        await asyncio.gather(layers.close(), images.close(), index.close())
        await history.close()

    ahead = asyncio.create_task(look_ahead(source))
    background = upkeep(settings, prepared, blobs, records) if prepared.address is not None else []
    tasks = [ahead, *(asyncio.ensure_future(work) for work in background)]
    try:
        clients = Clients(settings.trusted_proxies)
        observation = Observation(metrics.requests, clients, traces, verbose=settings.log_level == "debug")
        probes = Probes(health, MetricsPage(metrics))
        application = Application(
            registry.answer,
            observation,
            probes.public(private=settings.admin_port is None and is_loopback(prepared.address)),
            below,
            public_url=settings.public_url,
        )
        admin = Application(None, observation, probes.admin())
        history.start()
        yield Wired(application, images, blobs, pins, evaluator, index, close, counting, ahead, admin)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()
        await uses.close()
        if traces is not None:
            traces.close()
        prepared.roots.close()
        prepared.temporary.close()
