"""The interface of a storage backend: ten methods for named objects in one place.

A directory (``nixery.storage.filesystem``) and a bucket (``nixery.storage.bucket``) implement it. Blobs,
records, leases, the cache and copying are written once, above it. A wrapper of a driver can observe every
access (``nixery.telemetry.storage``).

Names are relative, with slashes, and chosen by the code above: never by a client. An object appears as a
whole or not at all; a later writer replaces it. Readers and writers in any number of processes need no lock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a storage.

    Attributes:
        name: relative to the storage.
        size: bytes.
        modified: when it was written or renewed, in seconds since the epoch by the storage's clock.
        path: the file that holds it, in results of ``stat`` and ``commit``; ``None`` in listings,
            and if it is not on this machine.
    """

    name: str
    size: int
    modified: float
    path: Path | None = None


class Upload(Protocol):
    """One object while it is written. Its methods block: packing does not run on the event loop."""

    def write(self, data: bytes, /) -> None:
        """Append bytes.

        Raises:
            StorageError: they cannot be written.
        """
        ...

    def commit(self, name: str, beside: Mapping[str, bytes]) -> StoredObject:
        """Give the written bytes a name, after storing small objects that have to exist first.

        Nothing is written if an object of the same size has the name and all objects beside it are as given.

        Args:
            name: of the object.
            beside: small objects by their names, written or replaced before the object gets its name.

        Returns:
            The object as ``stat`` finds it, with the time of the storage's clock.

        Raises:
            BlobVerificationFailed: the storage lost bytes.
            StorageError: it cannot be stored.
        """
        ...


class Driver(Protocol):
    """Named objects in one place.

    Attributes:
        name: of the place, for messages: a path, or a URL such as ``s3://bucket``.
        is_remote: whether each call is a request over the network.
    """

    name: str
    is_remote: bool

    async def stat(self, name: str) -> StoredObject | None:
        """Look an object up; ``None`` if it is missing.

        Raises:
            StorageError: the storage does not answer.
        """
        ...

    async def read(self, name: str, largest: int) -> bytes | None:
        """Return an object; ``None`` if it is missing, or has more than ``largest`` bytes.

        Raises:
            StorageError: it cannot be read.
        """
        ...

    def stream(self, name: str, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield an object, or a range of it, in pieces of at most a MiB.

        A download always has a ``last``. Without it, the caller checks a blob that is probably not read again
        soon, which has two consequences: the object is read to its end, wherever that is, and a driver whose
        reads fill a cache, such as the page cache, drops it from there.

        Args:
            name: of the object.
            first: offset of the first byte.
            last: offset of the last byte; ``None`` for a check.

        Raises:
            FileNotFoundError: it is missing; raised before the first piece.
            StorageError: it cannot be read, or ends before ``last``.
        """
        ...

    async def write(self, name: str, content: bytes, *, renew: bool = False) -> None:
        """Write a small object, or replace it.

        Args:
            name: of the object.
            content: all of it.
            renew: the content has not changed; only the time has to, where a backend can do that alone.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def create(self) -> AbstractContextManager[Upload]:
        """Begin an object of any size; leaving the context without a commit leaves nothing behind.

        Raises:
            StorageError: it cannot be begun.
        """
        ...

    async def move(self, name: str, target: str) -> None:
        """Rename an object, which counts as written now; do nothing if it is missing.

        Raises:
            StorageError: it cannot be moved.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete an object; do nothing if it is missing.

        Raises:
            StorageError: it cannot be deleted.
        """
        ...

    def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        """Yield the objects below a directory, at any depth, in the order of their whole names, page by page.

        In that order, a directory sorts as its name with a slash at its end does: ``a-b`` comes before
        ``a/b``, although ``a`` comes before ``a-b``.

        Args:
            directory: without a slash at its end; may be missing.
            after: the name of an object, which need not exist; only those after it are listed.

        Raises:
            StorageError: it cannot be listed.
        """
        ...

    async def url(self, name: str) -> str | None:
        """Return a URL at which clients can read an object; ``None`` if they have to ask the server.

        Raises:
            StorageError: the URL cannot be made.
        """
        ...

    async def probe(self) -> None:
        """Check that the storage can be written to, and leave nothing behind.

        Raises:
            StorageFull: there is no room.
            StorageError: another reason.
        """
        ...
