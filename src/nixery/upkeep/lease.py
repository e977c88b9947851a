"""One collection at a time, and what it is about to delete: a record that others look at."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from nixery.errors import CollectionRunning, StorageError, StorageFull
from nixery.oci.digest import Digest
from nixery.storage.store import RecordStore
from nixery.storage.uses import COLLECTIONS, LEASE

_RENEWED_EVERY = LEASE / 6


class Lease:
    """The record of the kind ``collections`` of one collection; see ``nixery.storage.uses`` for who reads it.

    It is renewed as long as the context lasts. One that has not been for ``LEASE`` seconds is of a dead process.

    Args:
        records: shared by all.

    Attributes:
        started: when it was taken, in seconds since the epoch by the storage's clock.

    Raises:
        CollectionRunning: on entering; there is another one.
        StorageError: the storage cannot be asked.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self.started = time.time()
        self._key = secrets.token_hex(16)
        self._content = b""
        self._written = 0.0
        self._renewing: asyncio.Task[None] | None = None
        # One write after the other: a slow renewal that ended after a condemnation would take that back.
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # Written first and looked around after, so that of two at the same time at least one sees the other; perhaps both, and both
        # give way.
        await self._write(b"")
        try:
            await self._look_for_others()
        except BaseException:
            await self._delete()
            raise
        self._renewing = asyncio.ensure_future(self._renew())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._delete()

    @property
    def holds(self) -> bool:
        """Whether everybody else believes in it still, with a good margin."""
        return time.monotonic() - self._written < LEASE / 2

    async def condemn(self, digests: Iterable[Digest]) -> None:
        """Say what is going to be deleted; nothing takes it back.

        Where there is no room to say it, no claim can be written either: then what was not used within the grace period goes unsaid,
        rather than that a full disk stays full.

        Raises:
            StorageError: it cannot be written.
        """
        await self._write("\n".join(digest.hex for digest in digests).encode())

    async def _write(self, content: bytes) -> None:
        async with self._writing:
            self._content = content
            # Others count from when it was written, which may be long before we are told.
            begun = time.monotonic()
            with suppress(StorageFull):
                await self._records.put(COLLECTIONS, self._key, content)
            self._written = begun

    async def _look_for_others(self) -> None:
        modified = {listed.key: listed.modified async for listed in self._records.scan(COLLECTIONS)}
        # A storage without room has not taken it.
        self.started = modified.pop(self._key, self.started)
        for key, renewed in modified.items():
            # A time far in the future is not a collector's: it would block all others for ever.
            if abs(self.started - renewed) < LEASE:
                raise CollectionRunning
            await self._records.delete(COLLECTIONS, key)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWED_EVERY)
            async with self._writing:
                begun = time.monotonic()
                with suppress(StorageError):
                    await self._records.renew(COLLECTIONS, self._key, self._content)
                    self._written = begun

    async def _delete(self) -> None:
        with suppress(StorageError):
            await self._records.delete(COLLECTIONS, self._key)
