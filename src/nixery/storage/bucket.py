"""Blobs in a bucket, under the names that they have on disk (``nixery.storage.filesystem``).

::

    blobs/sha256/<first 2 hex digits>/<64 hex digits>       written once
    blobs/sha256/<first 2 hex digits>/<64 hex digits>.size  how many bytes it has to have, in decimal digits
    quarantine/<64 hex digits>                              blobs that were found broken
    uploads/<random>                                        what is being written, or was left behind

An object appears as a whole or not at all, and under its digest only after everything was digested here. So neither a broken
upload nor a second writer can be seen.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import obstore

from nixery.caching import LRUCache
from nixery.errors import BlobUnknown, BlobVerificationFailed, InvalidDigest, StorageError
from nixery.oci.digest import Digest
from nixery.storage.bucket_access import Bucket, read_object
from nixery.storage.bucket_listing import list_objects
from nixery.storage.bucket_writer import BucketBlobWriter, blob_name, copy_object, put_small, size_name
from nixery.storage.store import LARGEST_DOCUMENT, QUARANTINED, ListedBlob, StoredBlob

# Seconds for which ``recall`` believes that a blob is there, and bytes for what is known of such blobs. Each layer of a warm
# pull would cost two requests otherwise, and each check of an image two for all of its layers.
BELIEVED = 300.0
_FACTS = 16 * 1024 * 1024

# How long a client may take from the redirect to its request; what has begun goes on. Retries begin at our URL again.
LIFETIME = timedelta(minutes=10)

# Piece sizes in bytes: for clients, of which a slow one has two or three in memory, and for the scrubber. And the limit for an
# object with a blob's size.
_PIECE = 256 * 1024
_CHUNK = 1024 * 1024
_SIZE = 20


class BucketBlobStore:
    """The ``BlobStore`` in a bucket."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._clock = clock
        self._facts: LRUCache[Digest, tuple[int, float]] = LRUCache(_FACTS)

    async def find(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.find``."""
        size = await self._find(digest)
        if size is None:
            self._facts.discard(digest)
            return None
        self._facts.put(digest, (size, self._clock()), 0)
        return StoredBlob(digest, size)

    async def find_cached(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.recall``."""
        known = self._facts.get(digest)
        if known is not None and self._clock() - known[1] < BELIEVED:
            return StoredBlob(digest, known[0])
        return await self.find(digest)

    async def _find(self, digest: Digest) -> int | None:
        store, key = self._bucket.store, self._bucket.key
        try:
            with self._bucket.doing("look up a blob in"):
                # Both to their end: one that is left alone would come back to an event loop that may be closed by then.
                found, expected = await asyncio.gather(
                    obstore.head_async(store, key(blob_name(digest))),
                    self._read(size_name(digest), _SIZE),
                    return_exceptions=True,
                )
                if isinstance(found, BaseException):
                    raise found
                if isinstance(expected, BaseException):
                    raise expected
        except FileNotFoundError:
            return None
        size = found["size"]
        return size if expected == b"%d" % size else None

    async def _read(self, name: str, largest: int) -> bytes | None:
        return await read_object(self._bucket, self._bucket.key(name), largest)

    async def read(self, blob: StoredBlob) -> bytes | None:
        """See ``BlobStore.read``."""
        content = None
        with suppress(FileNotFoundError), self._bucket.doing("read a blob from"):
            content = await self._read(blob_name(blob.digest), LARGEST_DOCUMENT)
        if content is not None and await asyncio.to_thread(Digest.of, content) == blob.digest:
            return content
        self._facts.discard(blob.digest)
        return None

    async def url(self, blob: StoredBlob) -> str | None:
        """See ``BlobStore.url``."""
        signed = self._bucket.signed
        if signed is None:
            return None
        with self._bucket.doing("make a URL for"):
            # The credentials may have to be fetched first.
            return await asyncio.to_thread(signed, self._bucket.key(blob_name(blob.digest)), LIFETIME)

    async def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """See ``BlobStore.stream``."""
        left = last - first + 1
        try:
            with self._bucket.doing("read a blob from"):
                answer = await obstore.get_async(
                    self._bucket.store,
                    self._bucket.key(blob_name(blob.digest)),
                    options={"range": (first, last + 1)},
                )
                async for chunk in answer.stream(_PIECE):
                    piece = bytes(chunk)[:left]
                    left -= len(piece)
                    yield piece
        except FileNotFoundError as error:
            self._facts.discard(blob.digest)
            raise StorageError(f"blob {blob.digest} is gone") from error
        if left:
            raise StorageError(f"{left} bytes are missing of blob {blob.digest}")

    async def put(self, digest: Digest, content: bytes) -> None:
        """See ``BlobStore.put``."""
        if Digest.of(content) != digest:
            raise BlobVerificationFailed(f"content that was to be stored as {digest} is {Digest.of(content)}")
        blob = await self.find(digest)
        # It is small, so it costs little to look at more than its size.
        if blob is not None:
            with suppress(StorageError):
                if await self.read(blob) == content:
                    return
        await asyncio.to_thread(put_small, self._bucket, digest, content)

    @contextmanager
    def create(self) -> Iterator[BucketBlobWriter]:
        """See ``BlobStore.create``."""
        writer = BucketBlobWriter(self._bucket)
        try:
            yield writer
        finally:
            writer.discard()

    async def probe(self) -> None:
        """See ``BlobStore.probe``."""
        key = self._bucket.key(f"uploads/{secrets.token_hex(16)}")
        try:
            with self._bucket.doing("write to"):
                await obstore.put_async(self._bucket.store, key, b"nixery", use_multipart=False)
                await obstore.delete_async(self._bucket.store, key)
        except FileNotFoundError as error:
            raise StorageError(f"there is no bucket {self._bucket.name}") from error

    async def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """See ``BlobStore.chunks``."""
        try:
            with self._bucket.doing("read a blob from"):
                answer = await obstore.get_async(self._bucket.store, self._bucket.key(blob_name(digest)))
                async for chunk in answer.stream(_CHUNK):
                    # The transport may have had more at hand.
                    for start in range(0, len(chunk), _CHUNK):
                        yield bytes(chunk)[start : start + _CHUNK]
        except FileNotFoundError:
            raise BlobUnknown(str(digest)) from None

    async def quarantine(self, digest: Digest) -> None:
        """See ``BlobStore.quarantine``."""
        with suppress(FileNotFoundError):
            with self._bucket.doing("look up a blob in"):
                found = await obstore.head_async(self._bucket.store, self._bucket.key(blob_name(digest)))
            place = f"quarantine/{digest.hex}"
            await asyncio.to_thread(copy_object, self._bucket, blob_name(digest), place, found["size"])
        await self.delete(digest)
        await self._shorten_quarantine(digest)

    async def _shorten_quarantine(self, last: Digest) -> None:
        # Times have whole seconds, so name the last one.
        kept = [
            (found["path"].endswith(last.hex), found["last_modified"].timestamp(), found["path"])
            async for found in list_objects(self._bucket, "list the quarantine of", "quarantine")
        ]
        for _, _, key in sorted(kept)[:-QUARANTINED]:
            with suppress(FileNotFoundError), self._bucket.doing("delete a blob from"):
                await obstore.delete_async(self._bucket.store, key)

    async def scan(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan``."""
        async for name, size, modified in self._objects():
            with suppress(InvalidDigest):
                yield ListedBlob(Digest.parse(f"sha256:{name}"), size, modified)

    async def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan_leftovers``: sizes without blobs."""
        previous = ""
        async for name, _, modified in self._objects():
            blob = name.removesuffix(".size")
            # Most listings have a blob's size right after it; where one has not, the blob is asked for.
            if blob not in {name, previous}:
                with suppress(InvalidDigest):
                    digest = Digest.parse(f"sha256:{blob}")
                    try:
                        with self._bucket.doing("look up a blob in"):
                            await obstore.head_async(self._bucket.store, self._bucket.key(blob_name(digest)))
                    except FileNotFoundError:
                        yield ListedBlob(digest, 0, modified)
            previous = name

    async def _objects(self) -> AsyncIterator[tuple[str, int, float]]:
        """Yield names, sizes and times."""
        async for found in list_objects(self._bucket, "list the blobs of", "blobs/sha256"):
            yield found["path"].rpartition("/")[2], found["size"], found["last_modified"].timestamp()

    async def delete(self, digest: Digest) -> None:
        """See ``BlobStore.delete``."""
        self._facts.discard(digest)
        # The size last: without a blob it means nothing.
        for name in (blob_name(digest), size_name(digest)):
            with suppress(FileNotFoundError), self._bucket.doing("delete a blob from"):
                await obstore.delete_async(self._bucket.store, self._bucket.key(name))
