"""The composition root: settings become adapters, adapters become the application. By hand, top to bottom."""

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
from nixery.access.audit import AuditLog
from nixery.access.loading import AccessRules
from nixery.access.quotas import Quotas
from nixery.access.shared_usage import SharedUsage
from nixery.binary_caches.client import BinaryCaches
from nixery.binary_caches.configuration import CacheConfiguration
from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBounds, ImageBuilder
from nixery.builds.cache_signing import CacheKeys, read_cache_key
from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.evaluation_cache import EvaluationCache
from nixery.builds.evaluator import Evaluator
from nixery.builds.events import BuildObserver, LoggingObserver
from nixery.builds.history import BuildHistory
from nixery.builds.image_closure import ImageClosures
from nixery.builds.images import Images, Indexes
from nixery.builds.layers import LayerPublisher, Packing
from nixery.builds.package_index import PackageIndex
from nixery.builds.pins import LookUpBounds, Pins
from nixery.builds.popularity import BATCH_TIMEOUT, BatchRecords, ReferenceCounting
from nixery.builds.previews import ImagePreviews
from nixery.builds.provision import Provider
from nixery.builds.served_paths import ServedPaths
from nixery.builds.slots import Share, Slots
from nixery.builds.substitution import Substitution
from nixery.errors import NixeryError, StorageError, TagUnknown, TooBusy
from nixery.gc.collector import Collector
from nixery.gc.scrubber import Scrubber
from nixery.gc.watermark import WatermarkMonitor, Watermarks
from nixery.locks import ProcessDirectory
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.machine import is_installed, require_usable_nix
from nixery.nix.options import NixOptions
from nixery.nix.packages import NixExpression
from nixery.nix.processes import ProcessContext
from nixery.nix.realisation import BATCH_PROCESSES, Nix, TimeLimits
from nixery.nix.sandbox import is_loopback
from nixery.nix.store_database import StoreDatabase, has_local_store
from nixery.nix.trees import NixStore
from nixery.oci.documents import canonical_json
from nixery.packing.compression import compression
from nixery.packing.packer import LayerPacker
from nixery.server.access_control import AccessControl
from nixery.server.api import Api, Builds, ImageDocuments, Packages
from nixery.server.app import Application
from nixery.server.binary_cache import PREFIX as CACHE_PREFIX
from nixery.server.binary_cache import BinaryCache
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.clients import Clients
from nixery.server.health import Health
from nixery.server.http import AnswerWriter, Handler
from nixery.server.observation import Observation
from nixery.server.pages.pages import Pages
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.published_images import PublishedImages
from nixery.server.published_packages import PublishedPackages
from nixery.server.registry import Registry
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.settings import Settings
from nixery.source_location import SourceLocation
from nixery.sources.channel import Archives, ChannelSource, channel_rule
from nixery.sources.directory import DirectorySource, Fingerprint
from nixery.sources.flake import FlakeReference, FlakeSource
from nixery.sources.git import GitRepository, GitSource
from nixery.sources.source import PackageSource
from nixery.startup import Resources
from nixery.storage.blobs import BlobStore, SmallBlobs
from nixery.storage.catalogue import Catalogue
from nixery.storage.files import file_system_use
from nixery.storage.leases import Leases
from nixery.storage.opening import Storage
from nixery.storage.records import RecordStore
from nixery.storage.versions import migrate_with_retries
from nixery.telemetry.metrics import Metrics
from nixery.telemetry.stages import Stages
from nixery.telemetry.storage import CountedDriver

if TYPE_CHECKING:
    from nixery.telemetry.traces import Traces

# Seconds between two scans of all records. In a bucket, a listing costs a request for 1000 of them.
_SCAN_INTERVAL = 300.0
_SCAN_INTERVAL_IN_A_BUCKET = 3600.0

# Seconds between two listings of the closures of images, for paths that the binary cache does not know.
_LISTING_INTERVAL = 5.0
_LISTING_INTERVAL_IN_A_BUCKET = 30.0

# Default low watermark, as a fraction of the high one.
_LOW = 0.9


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of the application that commands use.

    Attributes:
        application: the public listener.
        admin: the listener for health and metrics.
        images: builds images, or finds them.
        blobs: the content of images.
        closures: the store paths of images.
        pins: what tags mean.
        evaluator: what the package set says about a request.
        index: names of packages.
        previews: describes images without building them.
        counting: counts references across the package set.
        ahead: reads data in advance; no request depends on it, but it makes the first one faster.
        drain: starts no more builds, and waits for the running ones.
        close: ends all builds; call it before stopping the server.
    """

    application: Application
    admin: Application
    images: Images
    blobs: BlobStore
    closures: ImageClosures
    pins: Pins
    evaluator: Evaluator
    index: PackageIndex
    previews: ImagePreviews
    counting: ReferenceCounting
    ahead: asyncio.Task[None]
    drain: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


@asynccontextmanager
async def assemble(  # noqa: PLR0915 -- one statement for each part, from the bottom to the top
    settings: Settings,
    resources: Resources,
    expression: NixExpression | None = None,
    observer: BuildObserver | None = None,
) -> AsyncIterator[Components]:
    """Construct all parts of the application; close them when the context ends.

    Args:
        settings: of the process.
        resources: acquired at the start, for these settings.
        expression: added to the package set by the command line. The server never has one.
        observer: of builds; ``None`` for the log.
    """
    metrics = Metrics()
    traces = _traces(settings)

    # Storage.
    storage = resources.storage.observed(lambda driver: CountedDriver(driver, metrics.storage_errors))
    blobs, records = storage.blobs, storage.records
    leases = Leases(records, settings.storage_grace)
    catalogue = Catalogue(records)
    small_blobs = SmallBlobs(blobs)

    # Access.
    quotas = Quotas(shared=SharedUsage(records) if resources.address is not None else None)
    rules = _access_rules(settings, resources, records, quotas)
    audit = _audit_log(settings, resources)

    # The package source. Tag look-ups have separate slots, so that they do not wait for builds.
    state = Path(settings.environment.get("NIX_STATE_DIR", "/nix/var/nix"))
    collector = NixGarbageCollector(state, resources.roots.path)
    source = _package_source(settings, resources, NixStore(collector, settings.build_environment))
    share = Share(settings.max_builds_per_client, settings.queued_per_client)
    look_ups, histories = (
        Slots(settings.max_builds, settings.max_queued, busy=TooBusy.LOOKUPS, share=share) for _ in range(2)
    )
    bounds = LookUpBounds(look_ups, histories)
    pins = Pins(
        source,
        records,
        settings.pin_ttl,
        failure_time_to_live=settings.failure_ttl,
        bounds=bounds,
        # The user of a command edits a source on the same machine. A server has clients to answer.
        current_only=resources.address is None and settings.pin_ttl == 0,
    )

    # Nix.
    options = _nix_options(settings, metrics, sandbox=resources.sandbox)
    nix = Nix(
        TimeLimits(settings.nix_timeout, settings.evaluation_timeout),
        collector,
        options,
        expression,
        gate=resources.gate,
        database=StoreDatabase(state)
        if has_local_store(options.every_command, settings.build_environment)
        else None,
    )
    packer = LayerPacker(compression(settings.compression, settings.compression_level))

    # Caches of evaluations and images, keyed by everything that may change a result. An expression may refer
    # to anything, so its results are not stored. Neither does a command store those of a directory, whose
    # files may read others beside it (`src = ../app`): its user edits both. Layers are stored for all.
    cached = expression is None and (settings.package_set is None or resources.address is not None)
    program = Fingerprint().of(Path(nixery.__file__).parent)
    evaluation = canonical_json([program, options.identity]).decode()
    identity = canonical_json(
        [
            evaluation,
            packer.identity,
            settings.layer_budget,
            resources.popularity.identity,
            settings.created.rule,
        ]
    ).decode()
    evaluations = EvaluationCache(records if cached else None, evaluation)
    cache = (
        BuildCache(records, blobs, leases, identity, reproducible=settings.created.is_reproducible)
        if cached
        else None
    )

    # Builds.
    substitution = await _substitution(settings, records)
    layers = LayerPublisher(blobs, records, Packing(packer, settings.packing_workers, resources.locks))
    index = PackageIndex(
        pins,
        source,
        nix,
        resources.platforms[0],
        records,
        evaluation,
        settings.index_sets,
        failure_time_to_live=settings.failure_ttl,
        write_derivations=settings.index_derivations,
        substitutes=substitution is not None,
        public=settings.public_builds,
    )
    metrics.watch_index(lambda: index.progress)
    tls = resources.tls
    metrics.watch_certificate(lambda: None if tls is None else tls.current.expires.timestamp())
    # Nix may work again later where it is installed; binary caches alone do for a server without it.
    own_nix = nix if substitution is None or is_installed() else None
    evaluator = Evaluator(source, own_nix, evaluations, index if cached else None)
    image_bounds = ImageBounds(settings.layer_budget, settings.max_closure or None)
    closures = ImageClosures(records)
    builder = ImageBuilder(
        evaluator,
        Provider(own_nix, substitution),
        layers,
        blobs,
        leases,
        closures,
        resources.popularity,
        image_bounds,
        settings.created,
    )
    history = BuildHistory(records)
    observers: list[BuildObserver] = [
        observer or LoggingObserver(),
        history,
        metrics.builds,
        Stages([metrics.builds, traces] if traces else [metrics.builds]),
        *([traces] if traces else []),
        *([audit] if audit else []),
    ]
    slots = Slots(settings.max_builds, settings.max_queued, share=share)
    build_bounds = BuildBounds(
        slots, settings.build_timeout, admit=quotas.admit_build, refresh=quotas.refresh
    )
    builds = BuildCoordinator(cache, builder, observers, build_bounds, settings.failure_ttl)
    previews = ImagePreviews(evaluator, nix, image_bounds, settings.max_packages)
    indexes = Indexes(builds, blobs, leases, frozenset(settings.optional_platforms))
    images = Images(pins, builds, indexes, settings.max_packages)

    # Counts of references.
    counting = ReferenceCounting(
        pins,
        source,
        Nix(
            TimeLimits(settings.nix_timeout, max(settings.evaluation_timeout, BATCH_TIMEOUT)),
            collector,
            options,
            processes=BATCH_PROCESSES,
        ),
        BatchRecords(records, evaluation),
        settings.max_builds,
    )

    # The server.
    counted = {"pin": pins, "image": cache, "evaluation": evaluations, "blob": small_blobs}
    metrics.watch({kind: kept.counts for kind, kept in counted.items() if kept is not None})
    permissions = Permissions(catalogue, blobs, resources.platforms)
    registry = Registry(
        Manifests(images, blobs, leases, catalogue, permissions, index),
        Blobs(blobs, small_blobs, leases, permissions, redirect=settings.blob_delivery != "proxy"),
        Discovery(catalogue, permissions, public=settings.public_builds or rules is not None),
        permissions,
        log_links=settings.public_builds,
        audit=audit,
    )
    cache_of_paths = _binary_cache(settings, resources, closures, storage, small_blobs, leases, permissions)
    private = settings.admin_port is None and (resources.address is None or is_loopback(resources.address))
    published = PublishedBuilds(
        history,
        FollowerBounds(settings.max_followers, settings.max_followers_per_client),
        public=settings.public_builds,
    )
    cancellation = BuildCancellation(builds, published, audit, private=private)
    below, pages = _pages(
        settings,
        resources,
        index,
        ImageDescriptions(pins, cache, evaluator, blobs, history, closures),
        published,
        cancellation,
        images,
        catalogue,
        cache_of_paths,
    )

    async def source_is_usable() -> None:
        with suppress(TagUnknown):  # the source answered that it has no such tag
            await pins.require_known("latest")

    async def accepts_builds() -> None:
        builds.require_accepting()

    def resolves_nothing_new() -> str:
        failure = pins.resolution_failure()
        return f"what is pinned is served, but no newer state can be found: {failure}" if failure else ""

    health = Health(
        {
            "server": accepts_builds,
            "storage": blobs.probe,
            **({} if own_nix is None else {"nix": partial(asyncio.to_thread, require_usable_nix)}),
            "source": source_is_usable,
        },
        metrics,
        warnings={"source": resolves_nothing_new},
    )
    clients = Clients(settings.trusted_proxies)
    observation = Observation(metrics.requests, clients, traces, verbose=settings.log_level == "debug")
    access = (
        AccessControl(rules, quotas, resources.platforms, await rules.keys.secret("login"), audit)
        if rules
        else None
    )
    application = Application(
        registry.answer,
        observation,
        health.public_routes(private=private),
        below,
        public_url=settings.public_url,
        error_page=pages.error_page,
        access=access,
        encrypted=settings.tls_certificate is not None,
    )
    admin = Application(
        None, observation, health.admin_routes(), {"/api/v1/builds/": cancellation.answer_operator}
    )

    async def close() -> None:
        closing = [layers.close(), images.close(), index.close()]
        closing += [part.close() for part in (rules, cache_of_paths) if part is not None]
        await asyncio.gather(*closing)
        await asyncio.gather(
            history.close(), quotas.close(), *([substitution.close()] if substitution else [])
        )

    ahead = asyncio.create_task(_read_ahead(source, nix))
    # Commands end before any background work is due.
    background = []
    if resources.address is not None:
        background = _background(settings, resources, blobs, records, rules, cache_of_paths)
        background.append(migrate_with_retries(storage.driver, catalogue))
        if settings.index:
            pins.watch(index.want)
            background.append(index.run())
    tasks = [ahead, *(asyncio.ensure_future(work) for work in background)]
    try:
        history.start()
        yield Components(
            application,
            admin,
            images,
            blobs,
            closures,
            pins,
            evaluator,
            index,
            previews,
            counting,
            ahead,
            builds.drain,
            close,
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()
        await leases.close()
        for log in (traces, audit):
            if log is not None:
                await asyncio.to_thread(log.close)
        resources.roots.close()
        resources.temporary.close()


def _package_source(settings: Settings, resources: Resources, store: NixStore) -> PackageSource:
    """Make the one source that the settings name."""
    copies, temporary = settings.storage_path / "sources", resources.temporary.path
    git = settings.git_environment

    def place(url: str) -> SourceLocation:
        # The user of a command can read the settings anyway. All commands build the same image.
        return SourceLocation.parse(url, public=settings.is_public(url), local=resources.address is None)

    if settings.package_set is not None:
        return DirectorySource(settings.package_set, settings.build_environment, temporary)
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
            ProcessContext(settings.fetch_environment, settings.evaluation_bytes),
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
        fetching = ProcessContext(settings.fetch_environment, settings.evaluation_bytes)
        return FlakeSource(flake, place(flake.text), versions, settings.commits, store, fetching)
    raise AssertionError("the settings have one source")


def _nix_options(settings: Settings, metrics: Metrics, *, sandbox: bool | None) -> NixOptions:
    return NixOptions(
        every_command=settings.nix_arguments,
        sandbox=sandbox,
        import_from_derivation=settings.allow_ifd,
        environment=settings.evaluation_environment,
        fetching=settings.fetch_environment,
        building=settings.build_environment,
        memory=settings.evaluation_bytes,
        on_start=metrics.nix_started,
        on_index_start=metrics.nix_index_started,
        configuration=settings.package_configuration,
    )


async def _substitution(settings: Settings, records: RecordStore) -> Substitution | None:
    if settings.substitute == "nix":
        return None
    configuration = await asyncio.to_thread(
        CacheConfiguration.read, settings.environment, settings.nix_arguments
    )
    return Substitution(BinaryCaches(configuration), records)


def _pages(  # noqa: PLR0913, PLR0917 -- everything that pages show
    settings: Settings,
    resources: Resources,
    index: PackageIndex,
    descriptions: ImageDescriptions,
    builds: PublishedBuilds,
    cancellation: BuildCancellation,
    images: Images,
    catalogue: Catalogue,
    cache: BinaryCache | None,
) -> tuple[dict[str, Handler], Pages]:
    """Make the API, the pages and the binary cache, by the beginning of their paths; and the pages themselves."""
    platforms, public = resources.platforms, settings.public_builds
    packages, writer = PublishedPackages(index), AnswerWriter()
    api = Api(
        Packages(packages, writer),
        Builds(builds, images, cancellation, platforms),
        ImageDocuments(descriptions, platforms, writer, compare=public),
    )
    pages = Pages(
        builds,
        cancellation,
        packages,
        descriptions,
        PublishedImages(catalogue, public=public),
        platforms,
        writer,
        settings.failure_ttl,
    )
    # The first beginning that matches decides.
    below = {} if cache is None else {CACHE_PREFIX: cache.answer}
    return {**below, "/api/": api.answer, "/": pages.answer}, pages


def _binary_cache(  # noqa: PLR0913, PLR0917 -- all that its answers are made from
    settings: Settings,
    resources: Resources,
    closures: ImageClosures,
    storage: Storage,
    small_blobs: SmallBlobs,
    leases: Leases,
    permissions: Permissions,
) -> BinaryCache | None:
    """Make the binary cache; ``None`` for a server without one, and in a command.

    Raises:
        SettingsError: the key file has no secret key.
    """
    if not settings.serve_cache or resources.address is None:
        return None
    interval = (
        _LISTING_INTERVAL if settings.storage_backend == "filesystem" else _LISTING_INTERVAL_IN_A_BUCKET
    )
    key = None if settings.cache_key_file is None else read_cache_key(settings.cache_key_file)
    return BinaryCache(
        ServedPaths(closures, storage.records, interval),
        CacheKeys(storage.records, key),
        storage.blobs,
        small_blobs,
        leases,
        permissions,
    )


def _audit_log(settings: Settings, resources: Resources) -> AuditLog | None:
    if settings.audit_log is None or resources.address is None:
        return None
    return AuditLog(None if settings.audit_log == Path("-") else settings.audit_log)


def _access_rules(
    settings: Settings, resources: Resources, records: RecordStore, quotas: Quotas
) -> AccessRules | None:
    """Load the access file; ``None`` without one, and in a command, which has no clients."""
    if settings.access is None or resources.address is None:
        return None
    return AccessRules(settings.access, records, quotas)


def _traces(settings: Settings) -> Traces | None:
    """Make the exporter of traces; ``None`` if the settings ask for none, or OpenTelemetry is not installed."""
    if not settings.traces:
        return None
    try:
        from nixery.telemetry.traces import Traces  # noqa: PLC0415 -- an extra, and slow to import
    except ImportError as error:
        # Not fatal: the variables are often set for whole machines.
        structlog.get_logger("nixery.traces").warning(
            "cannot export traces: OpenTelemetry is not installed; "
            "install it with pip install 'nixery[otel]', or set OTEL_TRACES_EXPORTER=none",
            missing=error.name,
        )
        return None
    return Traces()


async def _read_ahead(source: PackageSource, nix: Nix) -> None:
    # Other sources would contact another server about tags that clients may never request.
    if isinstance(source, DirectorySource):
        await source.look_ahead()
        with suppress(NixeryError):  # the first request reports it
            async with source.open(await source.resolve(source.reference("latest"))) as package_set:
                await nix.check_version(package_set)


def _background(
    settings: Settings,
    resources: Resources,
    blobs: BlobStore,
    records: RecordStore,
    rules: AccessRules | None,
    cache: BinaryCache | None,
) -> list[Coroutine[Any, Any, None]]:
    """Make the background work of a server: garbage collection, scrubbing, and care of its directories."""
    collector = Collector(blobs, records, settings.storage_grace)
    usage = partial(file_system_use, settings.storage_path)
    interval = _SCAN_INTERVAL if settings.storage_backend == "filesystem" else _SCAN_INTERVAL_IN_A_BUCKET
    high = settings.storage_high
    marks = Watermarks(high, settings.storage_low or high.times(_LOW)) if high is not None else None
    work = [WatermarkMonitor(collector, blobs, records, usage, marks).run(interval)]
    if rules is not None:
        work.append(rules.watch())
    if cache is not None:
        work.append(cache.read_paths())
    if settings.scrub_rate:
        work.append(Scrubber(blobs, records, settings.scrub_rate * 1024 * 1024).run())
    work.append(_restore(resources.temporary, resources.roots))
    return work


async def _restore(*directories: ProcessDirectory) -> None:
    """Recreate directories of this process if another program deletes them."""
    while True:
        await asyncio.sleep(1)
        for directory in directories:
            with suppress(StorageError):  # the next user of the directory reports it
                await asyncio.to_thread(directory.restore)
