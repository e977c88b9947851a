"""A storage whose errors are counted, whoever deals with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from prometheus_client import CollectorRegistry, Counter

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore, BlobWriter, ListedBlob, ListedRecord, RecordStore, StoredBlob

_OPERATIONS = ("find", "read", "write", "list", "delete")


class StorageErrors:
    """How often the storage did not do what was asked of it, by kind of operation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._errors = Counter(
            "nixery_storage_errors", "What the storage did not do.", ("operation",), registry=registry
        )
        for operation in _OPERATIONS:
            self._errors.labels(operation)

    @contextmanager
    def counted(self, operation: str) -> Iterator[None]:
        """Count an error that ends the context."""
        try:
            yield
        except StorageError:
            self.add(operation)
            raise

    def add(self, operation: str) -> None:
        """Count an error."""
        self._errors.labels(operation).inc()


class CountedBlobStore:
    """The ``BlobStore`` of another one, whose errors are counted."""

    def __init__(self, blobs: BlobStore, errors: StorageErrors) -> None:
        self._blobs = blobs
        self._errors = errors

    async def find(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.find``."""
        try:  # for each large blob that is asked for, so without a context
            return await self._blobs.find(digest)
        except StorageError:
            self._errors.add("find")
            raise

    async def find_cached(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.recall``."""
        try:  # as above
            return await self._blobs.find_cached(digest)
        except StorageError:
            self._errors.add("find")
            raise

    async def read(self, blob: StoredBlob) -> bytes | None:
        """See ``BlobStore.read``."""
        with self._errors.counted("read"):
            return await self._blobs.read(blob)

    async def url(self, blob: StoredBlob) -> str | None:
        """See ``BlobStore.url``."""
        with self._errors.counted("read"):
            return await self._blobs.url(blob)

    async def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """See ``BlobStore.stream``."""
        with self._errors.counted("read"):
            async with aclosing(self._blobs.stream(blob, first, last)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def put(self, digest: Digest, content: bytes) -> None:
        """See ``BlobStore.put``."""
        with self._errors.counted("write"):
            await self._blobs.put(digest, content)

    @contextmanager
    def create(self) -> Iterator[BlobWriter]:
        """See ``BlobStore.create``."""
        with self._errors.counted("write"), self._blobs.create() as writer:
            yield writer

    async def scan(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan``."""
        with self._errors.counted("list"):
            async for blob in self._blobs.scan():
                yield blob

    async def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan_leftovers``."""
        with self._errors.counted("list"):
            async for blob in self._blobs.scan_leftovers():
                yield blob

    async def delete(self, digest: Digest) -> None:
        """See ``BlobStore.delete``."""
        with self._errors.counted("delete"):
            await self._blobs.delete(digest)

    async def quarantine(self, digest: Digest) -> None:
        """See ``BlobStore.quarantine``."""
        with self._errors.counted("delete"):
            await self._blobs.quarantine(digest)

    async def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """See ``BlobStore.chunks``."""
        with self._errors.counted("read"):
            async for chunk in self._blobs.chunks(digest):
                yield chunk

    async def probe(self) -> None:
        """See ``BlobStore.probe``."""
        with self._errors.counted("write"):
            await self._blobs.probe()


class CountedRecordStore:
    """The ``RecordStore`` of another one, whose errors are counted."""

    def __init__(self, records: RecordStore, errors: StorageErrors) -> None:
        self._records = records
        self._errors = errors

    async def get(self, kind: str, key: str) -> bytes | None:
        """See ``RecordStore.get``."""
        with self._errors.counted("read"):
            return await self._records.get(kind, key)

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.put``."""
        with self._errors.counted("write"):
            await self._records.put(kind, key, content)

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.renew``."""
        with self._errors.counted("write"):
            await self._records.renew(kind, key, content)

    async def scan(self, kind: str, prefix: str = "") -> AsyncIterator[ListedRecord]:
        """See ``RecordStore.scan``."""
        with self._errors.counted("list"):
            async for record in self._records.scan(kind, prefix):
                yield record

    async def delete(self, kind: str, key: str) -> None:
        """See ``RecordStore.delete``."""
        with self._errors.counted("delete"):
            await self._records.delete(kind, key)
