"""Copies of a bucket's blobs on this machine's disk.

``cache/<64 hex digits>`` in the storage directory. A file is renamed there after it was synced and its digest
was found right, so every copy is whole after a crash. If the disk does not take a copy, clients get the
bucket's bytes without one. A second server on the same directory has its own bound, and finds the copies of
both.

Disks lose bits. So a copy of an earlier process is compared with its digest before it is served, once, when a
client first asks for it or its image. No request waits for that: clients get the bucket's bytes until it is
done, and if the copy is broken. The scrubber reads the originals, and is off for a bucket by default, so it
would not find a broken copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from pathlib import Path

import structlog

from nixery.errors import InvalidDigest, StorageError
from nixery.files import open_regular
from nixery.oci.digest import Digest
from nixery.storage.files import make_directory, move_to_place, temporary_file, write_all

_log = structlog.get_logger("nixery.storage")


class BlobCache:
    """Copies of the blobs that were read as a whole; the least recently used ones are evicted.

    Args:
        root: the storage directory.
        temporary: for unfinished files, on the same file system.
        capacity: of all copies, in bytes.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(self, root: Path, temporary: Path, capacity: int) -> None:
        self._directory = root / "cache"
        self._temporary = temporary
        self._capacity = capacity
        make_directory(self._directory)
        self._sizes = _existing(self._directory)
        self._used = sum(self._sizes.values())
        # The final sizes of copies that are being written; they count towards the capacity.
        self._unfinished: dict[Digest, int] = {}
        self._unchecked = set(self._sizes)
        self._checks: dict[Digest, asyncio.Task[None]] = {}
        # One check at a time: a disk is no faster at reading several files, and requests need threads, too.
        self._checking = asyncio.Lock()
        self._evict()

    def find(self, digest: Digest, size: int) -> Path | None:
        """Return the file of a copy that was checked; ``None`` if there is none.

        Args:
            digest: of a blob that is in the bucket.
            size: of that blob; a copy of another size is deleted.
        """
        if digest not in self._sizes:
            return None
        path = self._path(digest)
        try:
            status = path.lstat()
            is_whole = stat.S_ISREG(status.st_mode) and status.st_size == size
        except OSError:
            is_whole = False
        if not is_whole:
            self.forget(digest)
            return None
        self._sizes.move_to_end(digest)
        return None if digest in self._unchecked else path

    def start_check(self, digest: Digest) -> None:
        """Begin to compare a copy of an earlier process with its digest, unless that was done."""
        if digest in self._unchecked and digest not in self._checks:
            self._checks[digest] = asyncio.create_task(self._check(digest))
            self._checks[digest].add_done_callback(lambda _: self._checks.pop(digest))

    async def _check(self, digest: Digest) -> None:
        async with self._checking:
            if digest not in self._unchecked:
                return
            is_whole = await asyncio.to_thread(_has_digest, self._path(digest), digest)
            # It may have been evicted meanwhile, and copied again.
            if digest not in self._unchecked:
                return
            if is_whole:
                self._unchecked.discard(digest)
            else:
                _log.warning("deleted a corrupted copy of a blob", digest=str(digest))
                self.forget(digest)

    async def copying(
        self, digest: Digest, size: int, chunks: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a whole blob, and keep a copy if none exists and it fits beside the unfinished ones."""
        is_known = digest in self._sizes or digest in self._unfinished
        async with aclosing(chunks):
            if is_known or size + sum(self._unfinished.values()) > self._capacity:
                async for chunk in chunks:
                    yield chunk
                return
            copy = _PartialCopy(digest, self._temporary)
            self._unfinished[digest] = size
            try:
                self._evict()
                async for chunk in chunks:
                    await asyncio.to_thread(copy.write, chunk)
                    yield chunk
                if await asyncio.to_thread(copy.finish, self._path(digest)):
                    del self._unfinished[digest]
                    self._sizes[digest] = size
                    self._used += size
            finally:
                self._unfinished.pop(digest, None)
                await asyncio.to_thread(copy.close)

    def forget(self, digest: Digest) -> None:
        """Delete a copy. A response that is being sent has its file open."""
        self._used -= self._sizes.pop(digest, 0)
        self._unchecked.discard(digest)
        with suppress(OSError):
            self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest.hex

    def _evict(self) -> None:
        while self._used + sum(self._unfinished.values()) > self._capacity:
            self.forget(next(iter(self._sizes)))


class _PartialCopy:
    """A copy while it is written. If the disk does not accept it, the copy is abandoned and a log line written.

    Its methods block. ``close`` waits for a write in a thread whose caller was cancelled.
    """

    def __init__(self, digest: Digest, temporary: Path) -> None:
        self._digest = digest
        self._temporary = temporary
        self._hash = hashlib.sha256()
        self._file = ExitStack()
        self._opened: tuple[int, Path] | None = None
        self._abandoned = False
        self._lock = threading.RLock()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with self._lock, self._abandon_on_error():
            if self._abandoned:
                return
            if self._opened is None:
                self._opened = self._file.enter_context(temporary_file(self._temporary))
            write_all(self._opened[0], data)
            self._hash.update(data)

    def finish(self, place: Path) -> bool:
        """Rename the copy to its place if its digest is right; return whether it did."""
        finished = False
        with self._lock, self._abandon_on_error():
            if (
                self._opened is not None
                and not self._abandoned
                and self._hash.hexdigest() == self._digest.hex
            ):
                move_to_place(*self._opened, place)
                finished = True
        return finished

    def close(self) -> None:
        """Delete the file, unless it was renamed to its place."""
        with self._lock, suppress(OSError):
            self._abandoned = True
            self._file.close()

    @contextmanager
    def _abandon_on_error(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, OSError) as error:
            _log.warning("cannot cache a blob", digest=str(self._digest), reason=str(error))
            # Free the room now rather than after the blob was sent: other copies may need it.
            self.close()


def _existing(directory: Path) -> OrderedDict[Digest, int]:
    """Return the sizes of the copies of earlier processes, the oldest first."""
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError, InvalidDigest):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, Digest.parse(f"sha256:{entry.name}"), status.st_size))
    return OrderedDict((digest, size) for _, digest, size in sorted(found, key=lambda item: item[0]))


def _has_digest(path: Path, digest: Digest) -> bool:
    try:
        descriptor, _ = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.hex
    except OSError:
        return False
