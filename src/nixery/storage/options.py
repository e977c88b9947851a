"""The options of a storage: its backend, and the values that the backend needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Every backend, by its name in the settings. ``nixery.storage.opening`` has a driver for each of them.
Backend = Literal["filesystem", "s3", "gcs", "azure", "memory"]


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Where a storage is.

    Attributes:
        backend: of the storage.
        path: directory of the storage; with another backend than ``filesystem``, that of the cache.
        bucket: name of the bucket or container.
        prefix: of all keys in the bucket, with or without slashes around it.
        public_endpoint: URL at which clients reach S3; ``None`` if it is the one that the server uses.
        redirects: whether clients are sent to the bucket; if not, the server delivers blobs and caches them.
        cache_size: bytes of the cache; 0 for no cache.
    """

    backend: Backend
    path: Path
    bucket: str = ""
    prefix: str = ""
    public_endpoint: str | None = None
    redirects: bool = True
    cache_size: int = 0
