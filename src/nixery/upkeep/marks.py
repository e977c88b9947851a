"""Which blobs are held by something that is in use."""

from __future__ import annotations

from collections.abc import Mapping

from nixery.oci.digest import Digest
from nixery.oci.references import described_by, is_index
from nixery.storage.store import BlobStore

# Larger documents are none; see the limit of clients in server/registry/manifests.py.
_LARGEST_DOCUMENT = 4 * 1024 * 1024


class Marks:
    """A set of blobs, in some 90 bytes for each: the first 64 bits of their digests.

    Should two blobs have those in common, both are held, which is the harmless mistake of the two.

    Attributes:
        size: bytes of all blobs in it.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._held: set[int] = set()
        self.size = 0

    def __contains__(self, digest: Digest) -> bool:
        return _short(digest) in self._held

    def __len__(self) -> int:
        return len(self._held)

    def add(self, parts: Mapping[Digest, int]) -> None:
        """Hold blobs, of which the sizes are given."""
        for digest, size in parts.items():
            if digest not in self:
                self._held.add(_short(digest))
                self.size += size

    async def parts(self, document: Digest) -> Mapping[Digest, int]:
        """Return what a manifest or an index consists of and is not held yet, itself included, with sizes.

        Nothing for one that is held already, and for one that is not there: without it nobody finds the rest.

        Raises:
            StorageError: the storage cannot be asked.
        """
        if document in self:
            return {}
        blob = await self._blobs.find(document)
        if blob is None:
            return {}
        found = {document: blob.size}
        if blob.size > _LARGEST_DOCUMENT:
            return found
        content = await self._blobs.read(blob)
        described = described_by(content)
        if is_index(content):
            for manifest, _ in described:
                found.update(await self.parts(manifest))
        else:
            found.update((part, size) for part, size in described if part not in self)
        return found


def _short(digest: Digest) -> int:
    return int(digest.hex[:16], 16)
