"""Whether an image is there as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore

# Blobs that are looked for at the same time: in a bucket, each takes its time.
_AT_ONCE = 16


async def are_there(blobs: BlobStore, parts: Iterable[tuple[Digest, int]]) -> bool:
    """Whether all blobs are there now, each with its size.

    Raises:
        StorageError: the storage cannot be asked.
    """
    wanted = list(parts)
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        found = await asyncio.gather(*(blobs.find(digest) for digest, _ in some))
        if any(blob is None or blob.size != size for blob, (_, size) in zip(found, some, strict=True)):
            return False
    return True


async def are_still_there(blobs: BlobStore, parts: Iterable[tuple[Digest, int]]) -> bool:
    """Whether nothing is known to have happened to blobs that were there, and that nobody deletes.

    Raises:
        StorageError: the storage cannot be asked.
    """
    for digest, size in parts:
        blob = await blobs.find_cached(digest)
        if blob is None or blob.size != size:
            return False
    return True
