"""What a storage says of what it has.

The seam between the pipeline, the server, and whatever keeps their bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nixery.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is there.

    Attributes:
        digest: what it is stored under.
        size: in bytes, as found just now.
    """

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class StoredFile(StoredBlob):
    """A blob that is on this machine.

    Attributes:
        path: the file that holds it; never written to again.
    """

    path: Path


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob as a listing tells of it.

    Attributes:
        digest: what it is stored under.
        size: in bytes, as the storage has it; whether it is the right one, ``find`` knows.
        modified: when it was stored, in seconds since the epoch by the storage's clock.
    """

    digest: Digest
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """A record as a listing tells of it.

    Attributes:
        key: within its kind.
        modified: when it was written or renewed, in seconds since the epoch by the storage's clock.
    """

    key: str
    modified: float


# Clients refuse larger manifests, so a larger document is neither a manifest nor a config.
LARGEST_DOCUMENT = 4 * 1024 * 1024

# Broken blobs that are kept for a person to inspect; beyond that, the oldest ones are deleted.
QUARANTINED = 64


class BlobWriter(Protocol):
    """Takes the bytes of one blob whose digest is not known yet."""

    def write(self, data: bytes, /) -> None:
        """Append bytes.

        Raises:
            StorageError: they cannot be written.
        """
        ...

    def commit(self) -> StoredBlob:
        """Check what was written and store it under its digest. A blob that is there and whole stays as it is.

        Raises:
            BlobVerificationFailed: the storage holds something else than what was written.
            StorageError: it cannot be stored.
        """
        ...


class BlobStore(Protocol):
    """Content-addressed storage: a blob is there as a whole under its digest, or it is not there."""

    async def find(self, digest: Digest) -> StoredBlob | None:
        """Look a blob up. Its size tells the caller whether it can be what he expects.

        Raises:
            StorageError: the storage cannot be asked.
        """
        ...

    async def find_cached(self, digest: Digest) -> StoredBlob | None:
        """Look a blob up as ``find`` does, or believe what was found in the last minutes, where asking costs a request.

        So this is for what is in use, and for answers that a client can do without. Whoever relies on a blob from now on has to ask
        ``find``: others may have deleted it since.

        Raises:
            StorageError: the storage cannot be asked.
        """
        ...

    async def read(self, blob: StoredBlob) -> bytes | None:
        """Return a whole document, for example a manifest, after checking its digest.

        Returns:
            ``None`` if it is missing, does not match its digest, or has more than ``LARGEST_DOCUMENT`` bytes.

        Raises:
            StorageError: it cannot be read.
        """
        ...

    async def url(self, blob: StoredBlob) -> str | None:
        """Return where a client can read a blob by itself for the next minutes; ``None`` if it has to come to us.

        Raises:
            StorageError: there should be such a place, but it cannot be told.
        """
        ...

    def stream(self, blob: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """Read a blob, or the part of it from one byte to another (both included), in memory that does not grow with it.

        Raises:
            StorageError: it cannot be read, or is shorter than that.
        """
        ...

    async def put(self, digest: Digest, content: bytes) -> None:
        """Store a small blob that is in memory.

        Raises:
            BlobVerificationFailed: the content does not have this digest.
            StorageError: it cannot be stored.
        """
        ...

    def create(self) -> AbstractContextManager[BlobWriter]:
        """Begin a blob, synchronously: packing does not run on the event loop.

        When the context ends without a commit, nothing is left of it.
        """
        ...

    async def probe(self) -> None:
        """See whether something could be stored just now, by storing a little that nobody finds.

        Raises:
            StorageFull: there is no room.
            StorageError: it could not, for another reason.
        """
        ...

    def chunks(self, digest: Digest) -> AsyncIterator[bytes]:
        """Yield the bytes that are stored under a digest, in pieces of a MiB at most, whether or not they are the right ones.

        They are not going to be needed again soon.

        Raises:
            BlobUnknown: there is no such blob.
            StorageError: they cannot be read.
        """
        ...

    async def quarantine(self, digest: Digest) -> None:
        """Have a blob be gone for ``find``, and keep its bytes for a person to look at where the storage has a place for that.

        Raises:
            StorageError: it cannot be moved.
        """
        ...

    def scan(self) -> AsyncIterator[ListedBlob]:
        """List all blobs, broken ones too, in any order, in memory that does not grow with their number.

        Raises:
            StorageError: the storage cannot be asked.
        """
        ...

    def scan_leftovers(self) -> AsyncIterator[ListedBlob]:
        """List what is left beside blobs that are gone, and what is there already of those that are being stored, likewise.

        Deleting such a blob deletes what is left of it. What is listed has no bytes of a blob.

        Raises:
            StorageError: the storage cannot be asked.
        """
        ...

    async def delete(self, digest: Digest) -> None:
        """Delete a blob; nothing happens if there is none. Whoever is reading it may go on where the storage allows it.

        Raises:
            StorageError: it cannot be deleted.
        """
        ...


class RecordStore(Protocol):
    """Small documents by kind and key, replaced as a whole. The server can recreate every record.

    ``nixery.storage.record_kinds`` lists the kinds and their bounds. Others may have written to the storage,
    so readers validate a record, and treat an invalid one as missing.
    """

    async def get(self, kind: str, key: str) -> bytes | None:
        """Return a record; ``None`` if it is missing, or larger than its kind allows.

        Args:
            kind: a lower-case word.
            key: hexadecimal digits.

        Raises:
            StorageError: the storage cannot be read.
        """
        ...

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """Write a record.

        Raises:
            StorageError: it cannot be written, or is larger than its kind allows.
        """
        ...

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """Have a record that is there count as written just now; write it if it is gone.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def scan(self, kind: str, prefix: str = "") -> AsyncIterator[ListedRecord]:
        """List the records of a kind whose keys begin with a prefix, in any order and in constant memory.

        Raises:
            StorageError: the storage cannot be read.
        """
        ...

    async def delete(self, kind: str, key: str) -> None:
        """Delete a record; nothing happens if there is none.

        Raises:
            StorageError: it cannot be deleted.
        """
        ...


@dataclass(frozen=True, slots=True)
class Storage:
    """A backend, open."""

    blobs: BlobStore
    records: RecordStore
