"""The seam of the storage: ten methods for each kind of place that can keep named objects.

A directory (``nixery.storage.filesystem``) and a bucket (``nixery.storage.bucket``) implement it. Blobs, records, leases, the
cache and copying are written once, above it. A wrapper of a driver can observe every access (``nixery.telemetry.storage``).

Names are relative, with slashes, and chosen by the code above: never by a client. An object appears as a whole or not at all;
a later writer replaces it. Readers and writers in any number of processes need no lock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a storage.

    Attributes:
        name: relative to the storage.
        size: bytes.
        modified: when it was written or renewed, in seconds since the epoch by the storage's clock.
        path: the file that holds it; ``None`` if it is not on this machine.
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

    def commit(self, name: str, beside: Mapping[str, bytes]) -> Entry:
        """Give the written bytes a name, after storing small objects that have to exist first.

        Nothing is written if an object of the same size has the name and all objects beside it are as given.

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

    async def stat(self, name: str) -> Entry | None:
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
        """Yield an object in pieces of at most a MiB.

        Args:
            name: of the object.
            first: offset of the first byte.
            last: offset of the last byte; ``None`` to read to the end, once, without filling caches.

        Raises:
            FileNotFoundError: it is missing.
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

    def list(self, directory: str, after: str = "") -> AsyncGenerator[Entry, None]:
        """Yield the objects below a directory in the order of their names, page by page.

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
