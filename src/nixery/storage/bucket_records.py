"""Records in a bucket: ``records/<kind>/<first 2 characters>/<key>``, as on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import obstore

from nixery.errors import StorageError
from nixery.storage.bucket_access import Bucket, read_object
from nixery.storage.bucket_listing import list_objects
from nixery.storage.record_kinds import KINDS, is_key, record_name, require_size
from nixery.storage.store import ListedRecord


class BucketRecordStore:
    """The ``RecordStore`` in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def _key(self, kind: str, key: str) -> str:
        return self._bucket.key(record_name(kind, key))

    async def get(self, kind: str, key: str) -> bytes | None:
        """See ``RecordStore.get``."""
        name = self._key(kind, key)
        try:
            with self._bucket.doing("read a record from"):
                return await read_object(self._bucket, name, KINDS[kind].largest)
        except FileNotFoundError:
            return None

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.put``."""
        require_size(kind, content)
        try:
            with self._bucket.doing("write a record to"):
                await obstore.put_async(
                    self._bucket.store,
                    self._key(kind, key),
                    content,
                    attributes={"Content-Type": "application/json"},
                    use_multipart=False,
                )
        except FileNotFoundError as error:
            raise StorageError(
                f"cannot write a record to {self._bucket.name}: there is no such bucket"
            ) from error

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.renew``. An object's time is that of its last writing."""
        await self.put(kind, key, content)

    async def scan(self, kind: str, prefix: str = "") -> AsyncIterator[ListedRecord]:
        """See ``RecordStore.scan``. Ignores an object that is not in the directory of its name."""
        # Buckets list by whole parts of names; the first two characters of a key are one.
        directory = f"records/{kind}/{prefix[:2]}" if len(prefix) >= len("00") else f"records/{kind}"
        async for found in list_objects(self._bucket, "list the records of", directory):
            path = found["path"]
            key = path.rpartition("/")[2]
            if key.startswith(prefix) and is_key(key) and path.endswith(f"/{key[:2]}/{key}"):
                yield ListedRecord(key, found["last_modified"].timestamp())

    async def delete(self, kind: str, key: str) -> None:
        """See ``RecordStore.delete``."""
        with suppress(FileNotFoundError), self._bucket.doing("delete a record from"):
            await obstore.delete_async(self._bucket.store, self._key(kind, key))
