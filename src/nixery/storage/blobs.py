"""Blobs, stored under the digests of their bytes.

::

    blobs/sha256/<first 2 hex digits>/<64 hex digits>       the bytes
    blobs/sha256/<first 2 hex digits>/<64 hex digits>.size  their number, in decimal digits
    quarantine/<64 hex digits>                              bytes that were found broken

**Why each blob has its size beside it.** A blob must not be served in part, and hashing it before each
download would cost a read of all of it. A size that was stored apart from the bytes detects a file that a
full disk, a crash or a restored backup cut short, for one more small read: a look-up in a directory takes 18
µs instead of 6 µs, and one in a bucket sends two requests at once. Layer records have sizes, too, but a blob
is asked for by its digest, which leads to no record; and manifests and configs have no records at all. A blob
without its size, or with another one, counts as missing, and the next build stores it again. The scrubber
finds wrong bytes of the right size.

The size is written before the bytes or at the same time, and deleted after them. So a blob is found once both
exist, and a size alone is a leftover that the collector deletes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nixery.caching import CacheCounts, LRUCache
from nixery.errors import BlobUnknown, BlobVerificationFailed, InvalidDigest, StorageError
from nixery.oci.digest import Digest
from nixery.storage.cache import BlobCache
from nixery.storage.driver import Driver, StoredObject, Upload

# Clients refuse larger manifests, so a larger document is neither a manifest nor a config.
LARGEST_DOCUMENT = 4 * 1024 * 1024

# Broken blobs that are kept for inspection; beyond that, the oldest ones are deleted.
QUARANTINED = 64

# Bytes that are hashed on the event loop: at most some 50 microseconds.
_HASHED_INLINE = 64 * 1024

# Seconds for which ``find_cached`` assumes that a blob of a remote storage still exists. Without it, each
# layer of a warm pull would cost two requests, and each check of an image two for each of its layers.
PRESENCE_TTL = 300.0

# Bytes of memory for the blobs that are known to exist.
_PRESENCE_CAPACITY = 16 * 1024 * 1024

# Bytes for small blobs in memory.
_SMALL_BLOBS_CAPACITY = 64 * 1024 * 1024

# Blobs that are looked up at the same time: in a bucket, each takes a round trip.
_CONCURRENT_LOOKUPS = 16

# Bytes of the largest size in decimal digits.
_SIZE_LENGTH = 20

_DIRECTORY = "blobs/sha256"
_SUFFIX = ".size"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A whole blob.

    Attributes:
        digest: of its bytes.
        size: bytes, as found just now.
    """

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class StoredFile(StoredBlob):
    """A blob on this machine.

    Attributes:
        path: the file that holds it; never written to again.
    """

    path: Path


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob in a listing, which may be broken.

    Attributes:
        digest: that it is stored under.
        size: bytes in the storage; ``find`` compares them with the expected size.
        modified: when it was stored, in seconds since the epoch by the storage's clock.
    """

    digest: Digest
    size: int
    modified: float


def blob_name(digest: Digest) -> str:
    """Return the name of a blob in the storage."""
    return f"{_DIRECTORY}/{digest.hex[:2]}/{digest.hex}"


def size_name(digest: Digest) -> str:
    """Return the name of a blob's size in the storage."""
    return f"{_DIRECTORY}/{digest.hex[:2]}/{digest.hex}{_SUFFIX}"


class BlobWriter:
    """Takes the bytes of one blob, and computes their digest."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes, /) -> None:
        """Append bytes.

        Raises:
            StorageError: they cannot be written.
        """
        self._upload.write(data)
        self._hash.update(data)
        self._size += len(data)

    def commit(self) -> StoredBlob:
        """Store the bytes under their digest; a whole blob that already exists stays unchanged.

        Raises:
            BlobVerificationFailed: the storage lost bytes.
            StorageError: it cannot be stored.
        """
        digest = Digest(self._hash.hexdigest())
        entry = self._upload.commit(blob_name(digest), {size_name(digest): b"%d" % self._size})
        return _stored(digest, entry)


class BlobStore:
    """Content-addressed storage: a digest has a whole blob, or none.

    Args:
        driver: of the storage.
        cache: of copies on this machine, for a storage elsewhere; ``None`` for no copies.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, driver: Driver, cache: BlobCache | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._driver = driver
        self._cache = cache
        self._clock = clock
        # When a blob was last seen, and its size.
        self._present: LRUCache[Digest, tuple[int, float]] = LRUCache(_PRESENCE_CAPACITY)

    async def find(self, digest: Digest) -> StoredBlob | None:
        """Look a blob up. The caller compares its size with the one it expects.

        Raises:
            StorageError: the storage does not answer.
        """
        if not self._driver.is_remote:
            entry = await self._driver.stat(blob_name(digest))
            size = None if entry is None else await self._driver.read(size_name(digest), _SIZE_LENGTH)
            return None if entry is None or size != b"%d" % entry.size else _stored(digest, entry)
        blob = await self._find_remote(digest)
        if blob is None:
            self._present.discard(digest)
            return None
        self._present.put(digest, (blob.size, self._clock()), 0)
        return self._local(blob)

    def _local(self, blob: StoredBlob) -> StoredBlob:
        path = None if self._cache is None else self._cache.find(blob.digest, blob.size)
        return blob if path is None else StoredFile(blob.digest, blob.size, path)

    async def _find_remote(self, digest: Digest) -> StoredBlob | None:
        # Await both even if one fails: the other would come back to an event loop that may be closed by then.
        entry, size = await asyncio.gather(
            self._driver.stat(blob_name(digest)),
            self._driver.read(size_name(digest), _SIZE_LENGTH),
            return_exceptions=True,
        )
        if isinstance(entry, BaseException):
            raise entry
        if isinstance(size, BaseException):
            raise size
        return None if entry is None or size != b"%d" % entry.size else StoredBlob(digest, entry.size)

    async def find_cached(self, digest: Digest) -> StoredBlob | None:
        """Look a blob up as ``find`` does, or trust a recent look-up where a look-up costs a request.

        For blobs in use, and for responses that a client can do without: another process may have deleted the
        blob since. Callers that rely on a blob from now on call ``find``.

        Raises:
            StorageError: the storage does not answer.
        """
        if not self._driver.is_remote:
            return await self.find(digest)
        size, seen = self._present.get(digest) or (0, -PRESENCE_TTL)
        is_fresh = size and self._clock() - seen < PRESENCE_TTL
        blob = StoredBlob(digest, size) if is_fresh else await self.find(digest)
        if blob is None or self._cache is None:
            return blob
        self._cache.start_check(digest)
        return self._local(blob)

    async def read(self, blob: StoredBlob) -> bytes | None:
        """Return a whole document, for example a manifest, after checking its digest.

        Returns:
            ``None`` if it is missing, does not match its digest, or has more than ``LARGEST_DOCUMENT`` bytes.

        Raises:
            StorageError: it cannot be read.
        """
        content = await self._driver.read(blob_name(blob.digest), LARGEST_DOCUMENT)
        if content is not None and await _hash(content) == blob.digest:
            return content
        self._present.discard(blob.digest)
        return None

    async def url(self, blob: StoredBlob) -> str | None:
        """Return a URL where clients can read a blob for the next minutes; ``None`` if they have to ask the server.

        Raises:
            StorageError: the URL cannot be made.
        """
        return await self._driver.url(blob_name(blob.digest))

    async def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """Read a part of a blob, from one byte to another (both included), in constant memory.

        Raises:
            StorageError: it cannot be read, or is too short.
        """
        chunks = self._driver.stream(blob_name(blob.digest), first, last)
        if self._cache is not None and (first, last) == (0, blob.size - 1):
            chunks = self._cache.copying(blob.digest, blob.size, chunks)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        except FileNotFoundError as error:
            self._present.discard(blob.digest)
            raise StorageError(f"cannot read blob {blob.digest}: it was deleted") from error

    async def put(self, digest: Digest, content: bytes) -> None:
        """Store a small blob that is in memory.

        Raises:
            BlobVerificationFailed: the content does not have this digest, or the storage lost bytes.
            StorageError: it cannot be stored.
        """
        if Digest.of(content) != digest:
            raise BlobVerificationFailed(
                f"content to be stored as {digest} has the digest {Digest.of(content)}"
            )
        # It is small, so comparing more than the size costs little.
        with suppress(StorageError):
            blob = await self.find(digest)
            if blob is not None and await self.read(blob) == content:
                return
        # A blob is found once both have their names, in either order.
        await asyncio.gather(
            self._driver.write(size_name(digest), b"%d" % len(content)),
            self._driver.write(blob_name(digest), content),
        )
        if await self.find(digest) is None:
            raise BlobVerificationFailed(f"{len(content)} bytes of {digest} were written, and are not stored")

    @contextmanager
    def create(self) -> Iterator[BlobWriter]:
        """Begin a blob whose digest is not known yet; its writer blocks, as packing does not run on the event loop.

        Leaving the context without a commit leaves nothing behind.
        """
        with self._driver.create() as upload:
            yield BlobWriter(upload)

    async def probe(self) -> None:
        """Check that blobs can be stored, and leave nothing behind.

        Raises:
            StorageFull: there is no room.
            StorageError: another reason.
        """
        await self._driver.probe()

    async def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """Yield the stored bytes of a blob, right or wrong, in pieces of at most a MiB. For reading each blob once.

        Raises:
            BlobUnknown: there is no such blob.
            StorageError: they cannot be read.
        """
        try:
            async with aclosing(self._driver.stream(blob_name(digest))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except FileNotFoundError:
            raise BlobUnknown(str(digest)) from None

    async def quarantine(self, digest: Digest) -> None:
        """Move a broken blob to where ``find`` does not see it and a person can inspect it.

        Raises:
            StorageError: it cannot be moved.
        """
        place = f"quarantine/{digest.hex}"
        await self._driver.move(blob_name(digest), place)
        await self.delete(digest)
        # Times of a bucket have whole seconds, so the last one is named.
        kept = sorted(
            [(e.name == place, e.modified, e.name) async for e in self._driver.list("quarantine")],
            reverse=True,
        )
        for _, _, name in kept[QUARANTINED:]:
            await self._driver.delete(name)

    async def scan(self) -> AsyncIterator[ListedBlob]:
        """List all blobs, broken ones too, by their digests, in memory that does not grow with their number.

        Raises:
            StorageError: the storage cannot be listed.
        """
        async for entry in self._driver.list(_DIRECTORY):
            digest = _digest_of(entry.name)
            if digest is not None and entry.name == blob_name(digest):
                yield ListedBlob(digest, entry.size, entry.modified)

    async def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """List sizes without blobs: leftovers of deletions, and the first half of blobs that are being stored.

        ``delete`` deletes such a leftover.

        Raises:
            StorageError: the storage does not answer.
        """
        previous = ""
        async for entry in self._driver.list(_DIRECTORY):
            name = entry.name.removesuffix(_SUFFIX)
            digest = _digest_of(name)
            # The listing is in order, so a blob is listed right before its size; a blob stored meanwhile is
            # looked up.
            is_orphan = (
                digest is not None and name == blob_name(digest) and name not in {entry.name, previous}
            )
            if digest is not None and is_orphan and await self._driver.stat(name) is None:
                yield ListedBlob(digest, 0, entry.modified)
            previous = entry.name

    async def delete(self, digest: Digest) -> None:
        """Delete a blob; do nothing if it is missing. A response that is being sent may continue where the storage allows it.

        Raises:
            StorageError: it cannot be deleted.
        """
        self._present.discard(digest)
        for name in (blob_name(digest), size_name(digest)):
            await self._driver.delete(name)
        if self._cache is not None:
            self._cache.forget(digest)


def _stored(digest: Digest, entry: StoredObject) -> StoredBlob:
    if entry.path is None:
        return StoredBlob(digest, entry.size)
    return StoredFile(digest, entry.size, entry.path)


def _digest_of(name: str) -> Digest | None:
    try:
        return Digest.parse(f"sha256:{name.rpartition('/')[2]}")
    except InvalidDigest:
        return None


class SmallBlobs:
    """Manifests, configs and other small blobs in memory. A blob was verified when it was read, so it stays valid.

    Attributes:
        counts: of look-ups.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self.counts = CacheCounts()
        self._blobs = blobs
        self._kept: LRUCache[Digest, bytes] = LRUCache(_SMALL_BLOBS_CAPACITY)

    def kept(self, digest: Digest) -> bytes | None:
        """Return a blob that is in memory."""
        content = self._kept.get(digest)
        if content is not None:
            self.counts.hits += 1
        return content

    async def read(self, blob: StoredBlob) -> bytes | None:
        """Read a blob and keep it; ``None`` if it does not match its digest.

        Raises:
            StorageError: it cannot be read.
        """
        self.counts.misses += 1
        content = await self._blobs.read(blob)
        if content is not None:
            self._kept.put(blob.digest, content, len(content))
        return content


async def are_there(blobs: BlobStore, parts: Iterable[tuple[Digest, int]]) -> bool:
    """Whether all blobs are stored now, each with its size.

    Raises:
        StorageError: the storage does not answer.
    """
    wanted = list(parts)
    for start in range(0, len(wanted), _CONCURRENT_LOOKUPS):
        some = wanted[start : start + _CONCURRENT_LOOKUPS]
        found = await asyncio.gather(*(blobs.find(digest) for digest, _ in some))
        if any(blob is None or blob.size != size for blob, (_, size) in zip(found, some, strict=True)):
            return False
    return True


async def are_still_there(blobs: BlobStore, parts: Iterable[tuple[Digest, int]]) -> bool:
    """Whether all blobs of an image in use are stored, as far as ``find_cached`` knows.

    Raises:
        StorageError: the storage does not answer.
    """
    for digest, size in parts:
        blob = await blobs.find_cached(digest)
        if blob is None or blob.size != size:
            return False
    return True


async def _hash(content: bytes) -> Digest:
    # A client may ask for a layer as if it were a manifest: megabytes are not hashed on the event loop.
    return (
        Digest.of(content) if len(content) <= _HASHED_INLINE else await asyncio.to_thread(Digest.of, content)
    )
