"""The backend that the settings name, tried out."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import StorageError
from nixery.settings.storage import StorageSettings
from nixery.storage.bucket import LIFETIME, BucketBlobStore
from nixery.storage.bucket_access import Bucket, public, signing
from nixery.storage.bucket_records import BucketRecordStore
from nixery.storage.cache import CachedBlobStore
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore
from nixery.storage.store import BlobStore, RecordStore

if TYPE_CHECKING:  # obstore's types are not there at run time
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


@dataclass(frozen=True, slots=True)
class Storage:
    """A backend, open."""

    blobs: BlobStore
    records: RecordStore


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
