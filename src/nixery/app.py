"""Settings become what asks Nix, and what knows where packages come from.

The pages, and the API below them.

Traces, where they are asked for.

What a server does in the background.

The composition root: settings become adapters, adapters become the application. By hand, top to bottom.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

import nixery
from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBounds, ImageBuilder
from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.evaluation_cache import EvaluationCache, Evaluator
from nixery.builds.events import BuildObserver, LoggingObserver, Observers
from nixery.builds.history import BuildHistory
from nixery.builds.images import Images, Indexes, Prebuilder
from nixery.builds.layers import LayerPublisher, Packing
from nixery.builds.packages import PackageIndex, PackageListing
from nixery.builds.pins import BoundedSource, Pins
from nixery.builds.popularity import BATCH_TIMEOUT, BatchRecords, ReferenceCounting
from nixery.builds.slots import Share, Slots
from nixery.errors import StorageError, TagUnknown, TooBusy
from nixery.gc.collector import Collector
from nixery.gc.scrubber import Scrubber
from nixery.gc.watermark import WatermarkMonitor, Watermarks
from nixery.locks import ProcessDirectory
from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots
from nixery.nix.machine import require_usable_nix
from nixery.nix.options import NixOptions
from nixery.nix.packages import NixExpression
from nixery.nix.processes import ProcessContext
from nixery.nix.realisation import SubprocessNixBuilder, SubprocessPackageGraph
from nixery.oci.documents import canonical_json
from nixery.packing.compression import compression
from nixery.packing.packer import LayerPacker
from nixery.server.api.builds import Builds
from nixery.server.api.images import ImageDocuments
from nixery.server.api.packages import Packages
from nixery.server.api.router import Api
from nixery.server.app import Application, Handler
from nixery.server.clients import Clients
from nixery.server.health import Health, MetricsPage, Probes, is_loopback
from nixery.server.observation import Observation
from nixery.server.pages.router import Pages
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.settings import Settings
from nixery.source_location import SourceLocation
from nixery.sources.channel import Archives, ChannelSource, channel_rule
from nixery.sources.directory import DirectorySource, Fingerprint
from nixery.sources.flake_lock import FlakeReference
from nixery.sources.flakes import FlakeSource
from nixery.sources.git import GitSource
from nixery.sources.git_repository import GitRepository
from nixery.sources.source import PackageSource
from nixery.sources.trees import NixStore
from nixery.startup import Resources
from nixery.storage.blobs import BlobStore, SmallBlobs
from nixery.storage.catalogue import Catalogue
from nixery.storage.files import file_system_use
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore
from nixery.storage.versions import migrate_with_retries
from nixery.telemetry.metrics import Metrics
from nixery.telemetry.stages import Stages
from nixery.telemetry.storage import CountedDriver

if TYPE_CHECKING:
    from nixery.telemetry.traces import Traces


def package_source(settings: Settings, resources: Resources, store: NixStore) -> PackageSource:
    """Make the one source that the settings name."""
    copies, temporary, git = (
        settings.storage_path / "sources",
        resources.temporary.path,
        settings.git_environment,
    )

    def place(url: str) -> SourceLocation:
        # The user of a command can read the settings anyway; an image is the same, whichever command made it.
        return SourceLocation.parse(url, public=settings.shows(url), local=resources.address is None)

    if settings.package_set is not None:
        return DirectorySource(settings.package_set, settings.build_environment)
    if settings.repository is not None:
        location = place(settings.repository)
        repository = GitRepository(location, copies, git, settings.commits)
        return GitSource(location, repository, settings.commits, temporary, store, git)
    if settings.channel is not None:
        rule = channel_rule(settings.commits, settings.channel, settings.channel_tags)
        names = GitRepository(place(settings.channel_repository), copies, git, rule)
        archives = Archives(
            place(settings.channel_url),
            settings.channel_url,
            temporary,
            settings.fetch_environment,
            _evaluation_memory(settings),
        )
        return ChannelSource(settings.channel, settings.channel_tags, archives, names, rule, store)
    if settings.flake is not None:
        is_directory = settings.flake.startswith(("/", "."))
        flake = FlakeReference(str(Path(settings.flake).absolute()) if is_directory else settings.flake)
        versions = (
            GitRepository(place(flake.repository), copies, git, settings.commits)
            if flake.repository
            else None
        )
        fetching = ProcessContext(settings.fetch_environment, _evaluation_memory(settings))
        return FlakeSource(flake, place(flake.text), versions, settings.commits, store, fetching)
    raise AssertionError("the settings have one source")


async def look_ahead(source: PackageSource) -> None:
    """Read before anybody asks what will be needed anyway."""
    # The others would have to ask somebody else, about tags that perhaps nobody ever wants.
    if isinstance(source, DirectorySource):
        await source.look_ahead()


def nix_options(settings: Settings, *, sandbox: bool | None) -> NixOptions:
    """Return the options for running Nix.

    Args:
        settings: of the process.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
    """
    return NixOptions(
        every_command=settings.nix_arguments,
        sandbox=sandbox,
        import_from_derivation=settings.allow_ifd,
        environment=settings.evaluation_environment,
        fetching=settings.fetch_environment,
        building=settings.build_environment,
        memory=_evaluation_memory(settings),
    )


def _evaluation_memory(settings: Settings) -> int | None:
    return settings.evaluation_memory * 1024 * 1024 or None


def pages(
    settings: Settings,
    resources: Resources,
    index: PackageIndex,
    descriptions: ImageDescriptions,
    history: BuildHistory,
    warming: Prebuilder,
) -> dict[str, Handler]:
    """Make what answers people, and programs that are no clients of a registry, by how paths begin."""
    platforms, public = resources.platforms, settings.public_builds
    bounds = FollowerBounds(settings.max_followers, settings.max_followers_per_client)
    published = PublishedBuilds(history, bounds, public=public)
    api = Api(
        Packages(index),
        Builds(published, warming, platforms),
        ImageDocuments(descriptions, platforms, compare=public),
    )
    return {"/api/": api.answer, "/": Pages(index, published, descriptions, platforms).answer}


def make_traces(settings: Settings) -> Traces | None:
    """Make what writes traces; ``None`` if nobody wants any, or if what is needed for them is not installed."""
    if not settings.traces:
        return None
    try:
        from nixery.telemetry.traces import Traces  # noqa: PLC0415 -- an extra, and slow to import
    except ImportError as error:
        # No reason not to serve: the variables are often set for whole machines.
        structlog.get_logger("nixery.traces").warning(
            "no traces: OpenTelemetry's variables are set, but it is not installed; "
            "pip install 'nixery[otel]' installs it, OTEL_TRACES_EXPORTER=none ends this message",
            missing=error.name,
        )
        return None
    return Traces()


# Seconds between two scans of all records. In a bucket, a listing costs a request for 1000 of them.
_TIDIED = 300.0
_TIDIED_IN_A_BUCKET = 3600.0


def upkeep(
    settings: Settings, resources: Resources, blobs: BlobStore, records: RecordStore
) -> list[Coroutine[Any, Any, None]]:
    """What a server does in the background; commands end before there is anything to do."""
    collector = Collector(blobs, records, settings.storage_grace)
    usage = partial(file_system_use, settings.storage_path)
    tidied = _TIDIED if settings.storage_backend == "filesystem" else _TIDIED_IN_A_BUCKET
    high = settings.storage_high
    marks = Watermarks(high, settings.storage_low or high.times(0.9)) if high is not None else None
    work = [WatermarkMonitor(collector, blobs, records, usage, marks).run(tidied)]
    if settings.scrub_rate:
        work.append(Scrubber(blobs, records, settings.scrub_rate * 1024 * 1024).run())
    work.append(_keep(resources.temporary, resources.roots))
    return work


async def _keep(*directories: ProcessDirectory) -> None:
    """Make directories again that somebody deletes, and keep them from being taken for left behind."""
    while True:
        await asyncio.sleep(1)
        for directory in directories:
            with suppress(StorageError):  # whoever needs it is told
                await asyncio.to_thread(directory.restore)


@dataclass(frozen=True, slots=True)
class Components:
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
    resources: Resources,
    expression: NixExpression | None = None,
    observer: BuildObserver | None = None,
) -> AsyncIterator[Components]:
    """Put everything together; take it apart when the context ends.

    Args:
        settings: of the process.
        resources: acquired at start, for these settings.
        expression: what the command line adds to the package set. The server never has one.
        observer: of builds; ``None`` for the log.
    """
    metrics = Metrics()
    traces = make_traces(settings)
    storage = resources.storage.observed(lambda driver: CountedDriver(driver, metrics.storage_errors))
    blobs, records = storage.blobs, storage.records
    roots = GarbageCollectorRoots(resources.roots.path)
    collector = CollectorLock(Path(settings.environment.get("NIX_STATE_DIR", "/nix/var/nix")))
    source = package_source(settings, resources, NixStore(roots, collector, settings.build_environment))
    # Looking tags up has slots of its own: nobody waits there for somebody else's build.
    share = Share(settings.max_builds_per_client, settings.queued_per_client)
    look_ups, histories = (
        Slots(settings.max_builds, settings.max_queued, busy=TooBusy.LOOKUPS, share=share) for _ in range(2)
    )
    bounded = BoundedSource(source, look_ups, histories)
    pins = Pins(bounded, records, settings.pin_ttl, failure_time_to_live=settings.failure_ttl)
    options = nix_options(settings, sandbox=resources.sandbox)
    nix = SubprocessNixBuilder(
        settings.nix_timeout, roots, options, collector, expression, gate=resources.gate
    )
    packer = LayerPacker(compression(settings.compression, settings.compression_level))
    # What an expression refers to, nobody can tell; so it is evaluated each time.
    program = Fingerprint().of(Path(nixery.__file__).parent)
    evaluation = canonical_json([program, options.identity]).decode()
    identity = canonical_json(
        [evaluation, packer.identity, settings.layer_budget, resources.popularity.identity]
    ).decode()
    evaluations = EvaluationCache(records, evaluation) if expression is None else None
    uses = Leases(records, settings.storage_grace)
    cache = BuildCache(records, blobs, uses, identity) if expression is None else None
    layers = LayerPublisher(blobs, records, Packing(packer, settings.packing_workers, resources.locks))
    evaluator = Evaluator(source, nix, evaluations)
    image_bounds = ImageBounds(settings.layer_budget, settings.max_closure or None)
    builder = ImageBuilder(evaluator, nix, layers, blobs, uses, resources.popularity, image_bounds)
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
    builds = BuildCoordinator(cache, builder, observers, build_bounds, settings.failure_ttl)
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
        Manifests(images, blobs, uses, catalogue, resources.platforms),
        Blobs(blobs, small_blobs, uses, redirect=settings.blob_delivery != "proxy"),
        Discovery(catalogue, public=settings.public_builds),
        log_links=settings.public_builds,
    )
    listing = PackageListing(source, nix, resources.platforms[0], settings.failure_ttl)
    index = PackageIndex(pins, listing, records, evaluation)
    below = pages(
        settings,
        resources,
        index,
        ImageDescriptions(pins, cache, evaluator, blobs, history),
        history,
        Prebuilder(pins, bounded, builds, settings.max_packages),
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
    background = []
    if resources.address is not None:
        background = upkeep(settings, resources, blobs, records)
        background.append(migrate_with_retries(storage.driver, catalogue))
    tasks = [ahead, *(asyncio.ensure_future(work) for work in background)]
    try:
        clients = Clients(settings.trusted_proxies)
        observation = Observation(metrics.requests, clients, traces, verbose=settings.log_level == "debug")
        probes = Probes(health, MetricsPage(metrics))
        application = Application(
            registry.answer,
            observation,
            probes.public(private=settings.admin_port is None and is_loopback(resources.address)),
            below,
            public_url=settings.public_url,
        )
        admin = Application(None, observation, probes.admin())
        history.start()
        yield Components(application, images, blobs, pins, evaluator, index, close, counting, ahead, admin)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()
        await uses.close()
        if traces is not None:
            traces.close()
        resources.roots.close()
        resources.temporary.close()
