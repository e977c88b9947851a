"""What is in a bucket, page by page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import obstore

from nixery.errors import StorageError
from nixery.storage.bucket_access import Bucket

if TYPE_CHECKING:  # obstore's types are not there at run time
    from obstore import ObjectMeta

# Objects that are listed at a time.
_PAGE = 1000

# Seconds for which a listing that breaks off is gone on with, counted from the last object, and between two attempts.
_PATIENCE, _PAUSE = 10.0, 0.1


async def list_objects(bucket: Bucket, doing: str, directory: str) -> AsyncIterator[ObjectMeta]:
    """List what is in a directory and below it, in the order of the keys.

    obstore tries again what is refused, but not an answer that breaks off in its middle: from the last object, it is asked for the rest.

    Raises:
        StorageError: it cannot be listed; ``cannot <doing> <bucket>``.
    """
    last: str | None = None
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with bucket.doing(doing):
                async for page in obstore.list(
                    bucket.store, bucket.key(directory), offset=last, chunk_size=_PAGE
                ):
                    for found in page:
                        yield found
                        last = found["path"]
                        until = time.monotonic() + _PATIENCE
        except StorageError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_PAUSE)
        else:
            return
