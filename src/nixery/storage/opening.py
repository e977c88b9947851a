"""Opening the storage that the settings name, and checking that it can be used."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import StorageError
from nixery.files import read_regular
from nixery.storage.blobs import BlobStore
from nixery.storage.bucket import LIFETIME, Bucket, BucketDriver, public, signing
from nixery.storage.cache import BlobCache
from nixery.storage.driver import Driver
from nixery.storage.files import write_file
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore
from nixery.storage.versions import CONTENT, LARGEST, NAME, require_version

if TYPE_CHECKING:  # obstore has no types at run time
    from obstore.store import ClientConfig, RetryConfig

# obstore retries errors of the server, lost connections and timeouts, with pauses that double, for a minute at most.
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


class StorageOptions(Protocol):
    """The settings that opening a storage reads (``nixery.settings.StorageSettings``)."""

    @property
    def storage_backend(self) -> str: ...  # noqa: D102 -- documented with the settings
    @property
    def storage_path(self) -> Path: ...  # noqa: D102
    @property
    def blob_delivery(self) -> str | None: ...  # noqa: D102
    @property
    def cache_size(self) -> int: ...  # noqa: D102
    @property
    def s3_bucket(self) -> str | None: ...  # noqa: D102
    @property
    def s3_prefix(self) -> str: ...  # noqa: D102
    @property
    def s3_public_endpoint(self) -> str | None: ...  # noqa: D102
    @property
    def gcs_bucket(self) -> str | None: ...  # noqa: D102
    @property
    def azure_container(self) -> str | None: ...  # noqa: D102


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

    Checks that a bucket can be written to, read, listed and deleted from.

    Args:
        options: the settings.
        temporary: for unfinished files, on the file system of the storage directory.
        environment: of the process, with the endpoints; obstore itself reads the credentials from there.

    Raises:
        StorageError: it cannot be used, or has a later version.
    """
    if options.storage_backend == "filesystem":
        return Storage(_open_directory(options.storage_path, temporary))
    _check_access(_bucket(options, environment, _RETRY_AT_START), sign=options.blob_delivery != "proxy")
    cache = None
    if options.blob_delivery == "proxy" and options.storage_backend != "memory" and options.cache_size:
        cache = BlobCache(options.storage_path, temporary, options.cache_size)
    return Storage(BucketDriver(_bucket(options, environment, _RETRY)), cache)


def _open_directory(root: Path, temporary: Path) -> FilesystemDriver:
    is_new = not any((root / name).exists() for name in (NAME, "blobs", "records"))
    try:
        require_version(read_regular(root / NAME, LARGEST), str(root))
    except OSError as error:
        raise StorageError(f"cannot read the version of the storage {root}: {error.strerror}") from error
    driver = FilesystemDriver(root, temporary)
    if is_new:
        write_file(temporary, root / NAME, CONTENT)
    return driver


def _bucket(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    backend = options.storage_backend
    try:
        if backend == "s3":
            return _s3(options, environment, retry)
        if backend == "gcs":
            return _gcs(options, environment, retry)
        if backend == "azure":
            return _azure(options, environment, retry)
    except (BaseError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"NIXERY_STORAGE_BACKEND={backend} cannot be set up: {reason}") from error
    return Bucket("memory", _MEMORY, _prefix(options))


def _s3(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = options.s3_bucket or ""
    store = S3Store(
        bucket,
        client_options=_client(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        retry_config=retry,
    )
    reached = store
    if options.s3_public_endpoint is not None:
        # The server sends nothing there, so whether it is plain HTTP is up to the clients.
        reached = S3Store(
            bucket,
            config={"aws_endpoint_url_s3": options.s3_public_endpoint},
            client_options={"allow_http": True},
        )
    return Bucket(f"s3://{bucket}", store, _prefix(options), signing(reached))


def _gcs(options: StorageOptions, environment: Mapping[str, str], retry: RetryConfig) -> Bucket:
    bucket = options.gcs_bucket or ""
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
    container = options.azure_container or ""
    store = AzureStore(
        container,
        client_options=_client(environment, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        retry_config=retry,
    )
    return Bucket(f"az://{container}", store, _prefix(options), signing(store))


def _prefix(options: StorageOptions) -> str:
    prefix = options.s3_prefix.strip("/")
    return f"{prefix}/" if prefix else ""


def _client(environment: Mapping[str, str], *endpoints: str) -> ClientConfig:
    """Configure connections: TLS unless the endpoint is an http URL, and no limit on a transfer that makes progress."""
    endpoint = next((environment[name] for name in endpoints if environment.get(name)), "")
    return {"timeout": "12h", "read_timeout": "60s", "allow_http": endpoint.startswith("http://")}


def _check_access(bucket: Bucket, *, sign: bool) -> None:
    key = bucket.key(f"uploads/{secrets.token_hex(16)}")
    try:
        with bucket.doing("write to"):
            obstore.put(bucket.store, key, b"nixery", use_multipart=False)
        try:
            with bucket.doing("read from"):
                obstore.get(bucket.store, key).bytes()
            with bucket.doing("list"):
                is_new = not any(_has_objects(bucket, name) for name in ("blobs", "records"))
            version = _version(bucket)
        except StorageError:
            # A server that is started again and again must not leave objects behind.
            with suppress(BaseError, OSError):
                obstore.delete(bucket.store, key)
            raise
        with bucket.doing("delete from"):
            obstore.delete(bucket.store, key)
    except FileNotFoundError as error:
        raise StorageError(f"there is no bucket {bucket.name}") from error
    require_version(version, f"{bucket.name}/{bucket.prefix}")
    if is_new and version is None:
        with bucket.writing():
            obstore.put(bucket.store, bucket.key(NAME), CONTENT, use_multipart=False)
    if sign and bucket.signed is not None:
        # Some credentials permit everything else, and clients would be the first to notice.
        try:
            with bucket.doing("make a URL for"):
                bucket.signed(key, LIFETIME)
        except StorageError as error:
            raise StorageError(f"{error}; with NIXERY_BLOB_DELIVERY=proxy none is needed") from error


def _has_objects(bucket: Bucket, directory: str) -> bool:
    return any(obstore.list(bucket.store, bucket.key(directory), chunk_size=1))


def _version(bucket: Bucket) -> bytes | None:
    try:
        with bucket.doing("read from"):
            found = obstore.get(bucket.store, bucket.key(NAME))
            return bytes(found.bytes()) if found.meta["size"] <= LARGEST else None
    except FileNotFoundError:
        return None
