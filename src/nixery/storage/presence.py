"""Whether an image is there as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore


async def are_there(blobs: BlobStore, parts: Iterable[tuple[Digest, int]]) -> bool:
    """Whether all blobs are there, each with its size.

    Raises:
        StorageError: the storage cannot be asked.
    """
    for digest, size in parts:
        blob = await blobs.find(digest)
        if blob is None or blob.size != size:
            return False
    return True
