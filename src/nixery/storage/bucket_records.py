"""Records in a bucket: ``records/<kind>/<first 2 characters>/<key>``, as on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import obstore

from nixery.errors import StorageError
from nixery.storage.bucket_access import Bucket
from nixery.storage.bucket_listing import list_objects
from nixery.storage.store import ListedRecord

if TYPE_CHECKING:  # obstore's types are not there at run time
    from obstore import ObjectMeta

# Records that are read at the same time: each takes a request.
_CONCURRENCY = 16


class BucketRecordStore:
    """The ``RecordStore`` in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def _key(self, kind: str, key: str) -> str:
        return self._bucket.key(f"records/{kind}/{key[:2]}/{key}")

    async def get(self, kind: str, key: str) -> bytes | None:
        """See ``RecordStore.get``."""
        return await self._read(self._key(kind, key))

    async def _read(self, path: str) -> bytes | None:
        try:
            with self._bucket.doing("read a record from"):
                answer = await obstore.get_async(self._bucket.store, path)
                return bytes(await answer.bytes_async())
        except FileNotFoundError:
            return None

    async def find(self, kind: str, prefix: str) -> list[bytes]:
        """See ``RecordStore.find``."""
        # A listing is by whole parts of names; the first two characters of a key are one.
        directory = f"{kind}/{prefix[:2]}" if len(prefix) >= len("00") else kind
        paths = [
            found["path"]
            async for found in self._list(directory)
            if found["path"].rpartition("/")[2].startswith(prefix)
        ]
        paths.sort()
        contents: list[bytes] = []
        for start in range(0, len(paths), _CONCURRENCY):
            read = await asyncio.gather(*map(self._read, paths[start : start + _CONCURRENCY]))
            contents.extend(content for content in read if content is not None)
        return contents

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.put``."""
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

    async def scan(self, kind: str) -> AsyncIterator[ListedRecord]:
        """See ``RecordStore.scan``."""
        async for found in self._list(kind):
            yield ListedRecord(found["path"].rpartition("/")[2], found["last_modified"].timestamp())

    async def delete(self, kind: str, key: str) -> None:
        """See ``RecordStore.delete``."""
        with suppress(FileNotFoundError), self._bucket.doing("delete a record from"):
            await obstore.delete_async(self._bucket.store, self._key(kind, key))

    def _list(self, directory: str) -> AsyncIterator[ObjectMeta]:
        return list_objects(self._bucket, "list the records of", f"records/{directory}")
