"""Opening a storage by its options, and checking that it can be used."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import StorageError
from nixery.storage.blobs import BlobStore
from nixery.storage.bucket import Bucket, BucketDriver, public, signing
from nixery.storage.cache import BlobCache
from nixery.storage.driver import Driver
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.options import StorageOptions
from nixery.storage.records import RecordStore
from nixery.storage.versions import NAME, check_version, has_objects

if TYPE_CHECKING:  # obstore has no types at run time
    from obstore.store import ClientConfig, RetryConfig

# obstore retries errors of the server, lost connections and timeouts, with pauses that double, for a minute
# at most.
_RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}

# At start, a bucket that is down is waited for, but a misspelt name has to be reported soon.
_RETRY_AT_START: RetryConfig = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}

_GCS = "https://storage.googleapis.com"

# The backend `memory` is one store that all components of the process share.
_MEMORY = MemoryStore()


class Storage:
    """A storage: its driver, and the stores above it.

    Args:
        driver: of the storage.
        cache: of copies of blobs on this machine; ``None`` for no copies.
    """

    def __init__(self, driver: Driver, cache: BlobCache | None = None) -> None:
        self.driver = driver
        self.blobs = BlobStore(driver, cache)
        self.records = RecordStore(driver)
        self._cache = cache

    def observed(self, wrap: Callable[[Driver], Driver]) -> Storage:
        """Return the same storage with a wrapper around its driver."""
        return Storage(wrap(self.driver), self._cache)


def open_storage(options: StorageOptions, temporary: Path, environment: Mapping[str, str]) -> Storage:
    """Open a storage, and record the version of a new one; blocks.

    Args:
        options: of the storage.
        temporary: for unfinished files, on the file system of the storage directory.
        environment: of the process, with the endpoints; obstore itself reads the credentials from there.

    Raises:
        StorageError: it cannot be used, or has a later version.
    """
    try_out(_driver(options, temporary, environment, _RETRY_AT_START), redirects=options.redirects)
    driver = _driver(options, temporary, environment, _RETRY)
    if isinstance(driver, FilesystemDriver):
        # A storage of a later version, which has been refused by now, may have others.
        driver.make_directories()
    cache = None
    if driver.is_remote and options.backend != "memory" and not options.redirects and options.cache_size:
        cache = BlobCache(options.path, temporary, options.cache_size)
    return Storage(driver, cache)


def _driver(
    options: StorageOptions, temporary: Path, environment: Mapping[str, str], retry: RetryConfig
) -> Driver:
    """Create the driver of a backend: the one table of backends."""
    backend = options.backend
    try:
        match backend:
            case "filesystem":
                return FilesystemDriver(options.path, temporary)
            case "s3":
                return BucketDriver(_s3(options, environment, retry))
            case "gcs":
                return BucketDriver(_gcs(options, environment, retry))
            case "azure":
                return BucketDriver(_azure(options, environment, retry))
            case "memory":
                return BucketDriver(Bucket("memory", _MEMORY, _prefix(options)))
            case _:
                assert_never(backend)
    except (BaseError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"NIXERY_STORAGE_BACKEND={backend} cannot be set up: {reason}") from error


def try_out(driver: Driver, *, redirects: bool) -> None:
    """Check that a storage can be used, and record the version of a new one; blocks.

    Runs in an event loop of its own, as the caller's may be running, so no connection outlives it.

    Args:
        driver: of the storage. If it is remote, it must be able to write, list, read and delete.
        redirects: whether the driver has to be able to make URLs for clients, if it makes any.

    Raises:
        StorageError: it cannot be used, or has a later version.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _try_out(driver, redirects=redirects)).result()


async def _try_out(driver: Driver, *, redirects: bool) -> None:
    # Commands have to work on a disk that is full, so a directory is not written to.
    if driver.is_remote:
        await driver.probe()
        # Before the first read: without the permission to list, S3 answers 403 for missing objects.
        await has_objects(driver, "blobs")
    await check_version(driver)
    if redirects:
        # Some credentials permit everything else, and clients would be the first to notice.
        try:
            await driver.url(NAME)
        except StorageError as error:
            raise StorageError(f"{error}; with NIXERY_BLOB_DELIVERY=proxy none is needed") from error


def _s3(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = options.bucket
    store = S3Store(
        bucket,
        client_options=_client(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        retry_config=retry,
    )
    reached = store
    if options.public_endpoint is not None:
        # The server sends nothing there, so whether it is plain HTTP is up to the clients.
        reached = S3Store(
            bucket,
            config={"aws_endpoint_url_s3": options.public_endpoint},
            client_options={"allow_http": True},
        )
    return Bucket(f"s3://{bucket}", store, _prefix(options), signing(reached))


def _gcs(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = options.bucket
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
    return Bucket(f"gs://{bucket}", store, _prefix(options), signed)


def _is_key(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, Mapping) and "private_key" in content


def _azure(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    container = options.bucket
    store = AzureStore(
        container,
        client_options=_client(environment, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        retry_config=retry,
    )
    return Bucket(f"az://{container}", store, _prefix(options), signing(store))


def _prefix(options: StorageOptions) -> str:
    prefix = options.prefix.strip("/")
    return f"{prefix}/" if prefix else ""


def _client(environment: Mapping[str, str], *endpoints: str) -> ClientConfig:
    """Configure connections: TLS unless the endpoint is an http URL, and no limit on a transfer that makes progress."""
    endpoint = next((environment[name] for name in endpoints if environment.get(name)), "")
    return {"timeout": "12h", "read_timeout": "60s", "allow_http": endpoint.startswith("http://")}
