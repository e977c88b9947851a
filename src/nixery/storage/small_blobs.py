"""Small blobs in memory: manifests, configs, layers with a few links."""

from __future__ import annotations

from nixery.caching import CacheCounts, LRUCache
from nixery.oci.digest import Digest
from nixery.storage.store import BlobStore, StoredBlob

# Bytes in all.
_CAPACITY = 64 * 1024 * 1024


class SmallBlobs:
    """Reads blobs as a whole and keeps them. What is kept has been verified, so it stays true whatever becomes of its file.

    Attributes:
        counts: of the small blobs that were asked for.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self.counts = CacheCounts()
        self._blobs = blobs
        self._kept: LRUCache[Digest, bytes] = LRUCache(_CAPACITY)

    def kept(self, digest: Digest) -> bytes | None:
        """Return a blob that is in memory."""
        content = self._kept.get(digest)
        if content is not None:
            self.counts.hits += 1
        return content

    async def read(self, blob: StoredBlob) -> bytes | None:
        """Read a blob and keep it; ``None`` if its file does not have its digest.

        Raises:
            StorageError: it cannot be read.
        """
        self.counts.misses += 1
        content = await self._blobs.read(blob)
        if content is None:
            return None
        self._kept.put(blob.digest, content, len(content))
        return content
