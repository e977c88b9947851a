"""Copies of blobs on this machine's disk, for a bucket whose blobs go through us.

``cache/<64 hex digits>`` in the storage directory. A file has its name only after its digest was found to be right and it was synced, so
that whatever is there after a crash is whole. If this disk does not take a copy, the bucket's bytes go on without it. A second server on
the same directory has its own bound, and finds what both have.

Disks lose bits. So a copy from before this process is compared with its digest before it is served, once, when a client first asks for it
or its image. Nobody waits for that: reading is fast, and the bucket's bytes are sent until it is done, and when the copy is broken. The
scrubber would not do: it reads the originals, and for a bucket it is off unless somebody pays for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, suppress
from pathlib import Path

import structlog

from nixery.errors import InvalidDigest
from nixery.files import open_regular
from nixery.oci.digest import Digest
from nixery.storage.files import make_directory
from nixery.storage.store import BlobStore, BlobWriter, ListedBlob, StoredBlob, StoredFile
from nixery.storage.unfinished_copy import PartialCopy

_log = structlog.get_logger("nixery.storage")


class CachedBlobStore:
    """A ``BlobStore`` in front of another one. What was read as a whole is kept, and what was not asked for the longest goes.

    Args:
        blobs: where everything is.
        root: the storage directory.
        temporary: for unfinished files, on the same file system.
        capacity: of all copies, in bytes.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(self, blobs: BlobStore, root: Path, temporary: Path, capacity: int) -> None:
        self._blobs = blobs
        self._directory = root / "cache"
        self._temporary = temporary
        self._capacity = capacity
        make_directory(self._directory)
        self._sizes = _found(self._directory)
        self._used = sum(self._sizes.values())
        # Of copies that are being written, what they are going to have. They count as the others do.
        self._unfinished: dict[Digest, int] = {}
        self._unchecked = set(self._sizes)
        self._checks: dict[Digest, asyncio.Task[None]] = {}
        # One after the other: a disk is no faster for being read in many places, and threads are for requests too.
        self._checking = asyncio.Lock()
        self._shrink()

    async def find(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.find``. A copy is of use only as long as there is an original: deleting has to have an effect."""
        return self._copy_of(digest, await self._blobs.find(digest))

    async def find_cached(self, digest: Digest) -> StoredBlob | None:
        """See ``BlobStore.recall``. Only this leads to a check: ``find`` is also for those who look at everything there is."""
        found = self._copy_of(digest, await self._blobs.find_cached(digest))
        if found is not None and digest in self._unchecked and digest not in self._checks:
            self._checks[digest] = asyncio.create_task(self._check(digest))
            self._checks[digest].add_done_callback(lambda _: self._checks.pop(digest))
        return found

    def _copy_of(self, digest: Digest, blob: StoredBlob | None) -> StoredBlob | None:
        if blob is None or digest not in self._sizes:
            return blob
        path = self._path(digest)
        try:
            status = path.lstat()
            size = status.st_size if stat.S_ISREG(status.st_mode) else -1
        except OSError:
            size = -1
        if size != blob.size:
            self._forget(digest)
            return blob
        self._sizes.move_to_end(digest)
        return blob if digest in self._unchecked else StoredFile(digest, size, path)

    async def _check(self, digest: Digest) -> None:
        async with self._checking:
            if digest not in self._unchecked:
                return
            is_whole = await asyncio.to_thread(_has_digest, self._path(digest), digest)
            # It may have gone meanwhile, and there may be another one.
            if digest not in self._unchecked:
                return
            if is_whole:
                self._unchecked.discard(digest)
            else:
                _log.warning("a copy was broken", digest=str(digest))
                self._forget(digest)

    async def read(self, blob: StoredBlob) -> bytes | None:
        """See ``BlobStore.read``."""
        return await self._blobs.read(blob)

    async def url(self, blob: StoredBlob) -> str | None:
        """See ``BlobStore.url``."""
        return await self._blobs.url(blob)

    async def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """See ``BlobStore.stream``."""
        is_part = (first, last) != (0, blob.size - 1)
        async with aclosing(self._blobs.stream(blob, first, last)) as chunks:
            if is_part or not self._is_worth_a_copy(blob):
                async for chunk in chunks:
                    yield chunk
            else:
                async with aclosing(self._copied(blob, chunks)) as copied:
                    async for chunk in copied:
                        yield chunk

    def _is_worth_a_copy(self, blob: StoredBlob) -> bool:
        # What many ask for at once is written once; what does not fit beside the unfinished ones is only sent.
        known = blob.digest in self._sizes or blob.digest in self._unfinished
        return not known and blob.size + sum(self._unfinished.values()) <= self._capacity

    async def _copied(self, blob: StoredBlob, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        copy = PartialCopy(blob.digest, self._temporary)
        self._unfinished[blob.digest] = blob.size
        try:
            self._shrink()
            async for chunk in chunks:
                await asyncio.to_thread(copy.write, chunk)
                yield chunk
            if await asyncio.to_thread(copy.finish, self._path(blob.digest)):
                self._remember(blob.digest, blob.size)
        finally:
            self._unfinished.pop(blob.digest, None)
            await asyncio.to_thread(copy.close)

    async def put(self, digest: Digest, content: bytes) -> None:
        """See ``BlobStore.put``."""
        await self._blobs.put(digest, content)

    def create(self) -> AbstractContextManager[BlobWriter]:
        """See ``BlobStore.create``."""
        return self._blobs.create()

    async def probe(self) -> None:
        """See ``BlobStore.probe``. Nothing depends on the copies."""
        await self._blobs.probe()

    def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """See ``BlobStore.chunks``. Of the original, for that is what is looked at."""
        return self._blobs.chunks(digest)

    async def quarantine(self, digest: Digest) -> None:
        """See ``BlobStore.quarantine``."""
        await self._blobs.quarantine(digest)
        self._forget(digest)

    def scan(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan``."""
        return self._blobs.scan()

    def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """See ``BlobStore.scan_leftovers``."""
        return self._blobs.scan_leftovers()

    async def delete(self, digest: Digest) -> None:
        """See ``BlobStore.delete``."""
        await self._blobs.delete(digest)
        self._forget(digest)

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest.hex

    def _remember(self, digest: Digest, size: int) -> None:
        del self._unfinished[digest]
        self._sizes[digest] = size
        self._used += size

    def _shrink(self) -> None:
        while self._used + sum(self._unfinished.values()) > self._capacity:
            self._forget(next(iter(self._sizes)))

    def _forget(self, digest: Digest) -> None:
        # Whoever is being sent it has it open.
        self._used -= self._sizes.pop(digest, 0)
        self._unchecked.discard(digest)
        with suppress(OSError):
            self._path(digest).unlink(missing_ok=True)


def _found(directory: Path) -> OrderedDict[Digest, int]:
    """What is there from before, the oldest first."""
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError, InvalidDigest):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    continue
                found.append((status.st_mtime, Digest.parse(f"sha256:{entry.name}"), status.st_size))
    return OrderedDict((digest, size) for _, digest, size in sorted(found, key=lambda item: item[0]))


def _has_digest(path: Path, digest: Digest) -> bool:
    try:
        descriptor, _ = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.hex
    except OSError:
        return False
