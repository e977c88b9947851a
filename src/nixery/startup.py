"""Start-up checks: all that can fail before the first request, reported at once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import SettingsError, StorageError
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks, ProcessDirectory
from nixery.nix.advisories import Release, release
from nixery.nix.machine import native_platform, owns_store
from nixery.nix.options import NixOptions
from nixery.nix.sandbox import (
    BuilderGate,
    BuilderProbe,
    Confinement,
    is_loopback,
    log_confinement,
    require_confinement,
    require_sandbox,
)
from nixery.server.serve import listening_address
from nixery.settings import Settings, StorageSettings
from nixery.storage.bucket import LIFETIME, BucketBlobStore
from nixery.storage.bucket_access import Bucket, public, signing
from nixery.storage.bucket_records import BucketRecordStore
from nixery.storage.cache import CachedBlobStore
from nixery.storage.files import make_storage_directory
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore
from nixery.storage.popularity import PopularityCopies, load_popularity
from nixery.storage.store import BlobStore, RecordStore, Storage

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig


# Errors of the server, lost connections and time-outs are tried again, with pauses that double, for a minute at most.
_RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}

# A bucket that is down when we start is waited for, but nobody should wait long for the word that it is misspelt.
_RETRY_AT_START: RetryConfig = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}

_GCS = "https://storage.googleapis.com"


def open_storage(settings: StorageSettings, temporary: Path, environment: Mapping[str, str]) -> Storage:
    """Open the backend of the settings; blocks, for it is tried whether a bucket can be written, read, listed and deleted from.

    Args:
        settings: of which the storage's are read.
        temporary: for unfinished files.
        environment: of the process, with the endpoints; obstore reads the credentials from there by itself.

    Raises:
        StorageError: it cannot be used; why, in one line.
    """
    if settings.storage_backend == "filesystem":
        return Storage(
            FilesystemBlobStore(settings.storage_path, temporary),
            FilesystemRecordStore(settings.storage_path, temporary),
        )
    _try_out(_bucket(settings, environment, _RETRY_AT_START), sign=settings.blob_delivery != "proxy")
    bucket = _bucket(settings, environment, _RETRY)
    blobs: BlobStore = BucketBlobStore(bucket)
    through_us = settings.blob_delivery == "proxy" and settings.storage_backend != "memory"
    if through_us and settings.cache_size:
        blobs = CachedBlobStore(blobs, settings.storage_path, temporary, settings.cache_size)
    return Storage(blobs, BucketRecordStore(bucket))


def _bucket(settings: StorageSettings, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    backend = settings.storage_backend
    try:
        if backend == "s3":
            return _s3(settings, environment, retry)
        if backend == "gcs":
            return _gcs(settings, environment, retry)
        if backend == "azure":
            return _azure(settings, environment, retry)
    except (BaseError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"NIXERY_STORAGE_BACKEND={backend} cannot be set up: {reason}") from error
    return Bucket("memory", _MEMORY, _prefix(settings))


# What is in memory is one store for the process, whoever opens it.
_MEMORY = MemoryStore()


def _s3(settings: StorageSettings, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = settings.s3_bucket or ""
    store = S3Store(
        bucket,
        client_options=_client(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        retry_config=retry,
    )
    reached = store
    if settings.s3_public_endpoint is not None:
        # Nothing is sent there from here, so that plain HTTP is the clients' business.
        reached = S3Store(
            bucket,
            config={"aws_endpoint_url_s3": settings.s3_public_endpoint},
            client_options={"allow_http": True},
        )
    return Bucket(f"s3://{bucket}", store, _prefix(settings), signing(reached))


def _gcs(settings: StorageSettings, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = settings.gcs_bucket or ""
    emulator = environment.get("STORAGE_EMULATOR_HOST")
    if emulator is not None:
        store = GCSStore(
            bucket,
            config={"base_url": emulator},
            client_options=_client(environment, "STORAGE_EMULATOR_HOST"),
            retry_config=retry,
        )
    else:
        store = GCSStore(bucket, client_options=_client(environment), retry_config=retry)
    key = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    if key is not None and _is_key(Path(key)):
        signed = signing(store)
    else:
        signed = public(f"{emulator or _GCS}/{bucket}")
    return Bucket(f"gs://{bucket}", store, _prefix(settings), signed)


def _is_key(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, Mapping) and "private_key" in content


def _azure(settings: StorageSettings, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    container = settings.azure_container or ""
    store = AzureStore(
        container,
        client_options=_client(environment, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        retry_config=retry,
    )
    return Bucket(f"az://{container}", store, _prefix(settings), signing(store))


def _prefix(settings: StorageSettings) -> str:
    prefix = settings.s3_prefix.strip("/")
    return f"{prefix}/" if prefix else ""


def _client(environment: Mapping[str, str], *endpoints: str) -> ClientConfig:
    """Say how to connect: without TLS only to an endpoint that is written so. A transfer may last as long as bytes come."""
    endpoint = next((environment[name] for name in endpoints if environment.get(name)), "")
    return {"timeout": "12h", "read_timeout": "60s", "allow_http": endpoint.startswith("http://")}


def _try_out(bucket: Bucket, *, sign: bool) -> None:
    key = bucket.key(f"uploads/{secrets.token_hex(16)}")
    try:
        with bucket.doing("write to"):
            obstore.put(bucket.store, key, b"nixery", use_multipart=False)
        try:
            with bucket.doing("read from"):
                obstore.get(bucket.store, key).bytes()
            with bucket.doing("list"):
                next(iter(obstore.list(bucket.store, bucket.key("uploads"), chunk_size=1)), None)
        except StorageError:
            # What can be written again and again with each start should not be left behind.
            with suppress(BaseError, OSError):
                obstore.delete(bucket.store, key)
            raise
        with bucket.doing("delete from"):
            obstore.delete(bucket.store, key)
    except FileNotFoundError as error:
        raise StorageError(f"there is no bucket {bucket.name}") from error
    if sign and bucket.signed is not None:
        # Some credentials may do everything but this, and the first to hear of it would be clients.
        try:
            with bucket.doing("make a URL for"):
                bucket.signed(key, LIFETIME)
        except StorageError as error:
            raise StorageError(f"{error}; with NIXERY_BLOB_DELIVERY=proxy none is needed") from error


Result = TypeVar("Result")

_SANDBOX = {"auto": None, "on": True, "off": False}

_log = structlog.get_logger("nixery.nix")


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that a process acquires at the start.

    Attributes:
        address: to listen on, with the name of the host resolved; ``None`` if no server is to start.
        platforms: of a name that does not begin with a platform.
        popularity: reference counts for grouping layers.
        temporary: directory for unfinished files; removed with the process.
        roots: directory for roots of Nix's garbage collector; removed with the process.
        locks: on layers, between the processes of this machine.
        blobs: the storage of content.
        records: the storage of facts about content.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
        gate: that builds have to pass first.
        admin_address: to listen on for health and metrics; ``None`` without such a listener.
    """

    address: str | None
    platforms: tuple[Platform, ...]
    popularity: Popularity
    temporary: ProcessDirectory
    roots: ProcessDirectory
    locks: FileLocks
    blobs: BlobStore
    records: RecordStore
    sandbox: bool | None
    gate: BuilderGate
    admin_address: str | None = None


def prepare(settings: Settings, *, serving: bool = True) -> Resources:
    """Acquire everything that the settings name; blocks, so that a signal can interrupt it.

    Args:
        settings: of the process.
        serving: whether a server is to listen.

    Raises:
        SettingsError: with a line for every problem.
    """
    with ExitStack() as cleanup:
        resources = _prepare(settings, cleanup, serving=serving)
        cleanup.pop_all()
    if serving:
        _warn_of_unsafe_versions(settings)
    return resources


def _prepare(settings: Settings, cleanup: ExitStack, *, serving: bool) -> Resources:
    directory = settings.storage_path
    problems: list[str] = []

    # Directories of the storage.
    usable = _try(problems, lambda: make_storage_directory(directory)) is not None
    temporary = _try(problems, lambda: ProcessDirectory(directory / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(directory / "gc-roots")) if usable else None
    for made in filter(None, (temporary, roots)):
        cleanup.callback(made.close)
    locks = _try(problems, lambda: FileLocks(directory / "locks")) if usable else None

    # The probe of the sandbox takes a tenth of a second; the other checks run meanwhile.
    with ExitStack() as probing:
        probe = (
            _try(problems, lambda: probing.enter_context(builder_probe(settings, temporary.path)))
            if temporary and (serving or settings.nix_sandbox == "on")
            else None
        )
        opened = (
            _try(problems, lambda: open_storage(settings, temporary.path, settings.environment))
            if temporary
            else None
        )
        popularity = _try(problems, lambda: _popularity(settings, temporary))
        address = _try(problems, lambda: listening_address(settings.host, settings.port)) if serving else None
        admin_address = _try(problems, lambda: _admin_address(settings)) if serving else None
        platforms = settings.platforms or (native_platform(settings.build_environment),)
        confinement = probe.confinement() if probe else None

    # Confinement is waived if only this machine can request builds, or the operator accepts what builders can reach.
    waived = address is None or settings.nix_sandbox == "off" or is_loopback(address)
    if confinement is not None and settings.nix_sandbox == "on":
        _try(problems, lambda: require_sandbox(confinement))
    if confinement is not None and not waived:
        _try(problems, lambda: require_confinement(confinement, settings.host))

    if not (temporary and roots and locks and opened and popularity is not None) or problems:
        raise SettingsError(tuple(problems))
    if serving and confinement is not None:
        log_confinement(confinement)
    return Resources(
        address=address,
        platforms=platforms,
        popularity=popularity,
        temporary=temporary,
        roots=roots,
        locks=locks,
        blobs=opened.blobs,
        records=opened.records,
        sandbox=_sandbox(settings, confinement, waived=waived),
        gate=BuilderGate(None if waived else confinement, lambda: _confinement(settings, temporary.path)),
        admin_address=admin_address,
    )


def _sandbox(settings: Settings, confinement: Confinement | None, *, waived: bool) -> bool | None:
    asked = _SANDBOX[settings.nix_sandbox]
    if asked is not None or confinement is None or not owns_store():
        return asked
    # If builds ask for a sandbox, Nix has no fallback, even if the machine runs out of namespaces later. After a failed
    # probe, the gate accepts only a sandbox.
    return confinement.sandbox == "on" or (confinement.sandbox == "unknown" and not waived) or None


def _admin_address(settings: Settings) -> str | None:
    if settings.admin_port is None:
        return None
    return listening_address(settings.admin_host, settings.admin_port, "NIXERY_ADMIN_HOST, NIXERY_ADMIN_PORT")


def _popularity(settings: Settings, temporary: ProcessDirectory | None) -> Popularity:
    if settings.popularity_url is None:
        return Popularity()
    # Without a directory for a copy, the data is still checked.
    copies = PopularityCopies(settings.storage_path, temporary.path) if temporary else None
    return load_popularity(settings.popularity_url, copies)


def builder_probe(settings: Settings, directory: Path) -> BuilderProbe:
    """Start to determine what builders can reach.

    Args:
        settings: for running Nix.
        directory: private to the process.

    Raises:
        StorageError: the directory cannot be written to.
    """
    options = NixOptions(settings.nix_arguments, _SANDBOX[settings.nix_sandbox]).for_building
    try:
        return BuilderProbe(options, settings.build_environment, directory)
    except OSError as error:
        raise StorageError(f"cannot make a file in {directory}: {error.strerror}") from error


def _confinement(settings: Settings, directory: Path) -> Confinement:
    with builder_probe(settings, directory) as probe:
        return probe.confinement()


def releases(settings: Settings) -> Sequence[Release]:
    """Return the versions of programs that read untrusted input: Nix, and git if the package source uses it."""
    programs = ("nix-store",) if settings.package_set is not None else ("nix-store", "git")
    found = (release(program, settings.build_environment) for program in programs)
    return [program for program in found if program is not None]


def _warn_of_unsafe_versions(settings: Settings) -> None:
    for found in releases(settings):
        if found.warning:
            _log.warning(
                "unsafe version",
                program=found.program,
                version=found.version,
                advisories=[advisory.name for advisory in found.advisories],
                meaning=found.warning,
            )


@contextmanager
def storage(settings: StorageSettings, environment: Mapping[str, str]) -> Iterator[Storage]:
    """Open a storage without the rest of the application.

    Args:
        settings: of the storage.
        environment: of the process, with the endpoints of buckets.

    Raises:
        StorageError: it cannot be used.
    """
    make_storage_directory(settings.storage_path)
    temporary = ProcessDirectory(settings.storage_path / "temporary")
    try:
        yield open_storage(settings, temporary.path, environment)
    finally:
        temporary.close()


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    """Run a step; add what is wrong to the problems instead of raising it."""
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None
