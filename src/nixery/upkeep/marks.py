"""Which blobs are held by something that is in use."""

from __future__ import annotations

from collections.abc import Mapping

from nixery.oci.digest import Digest
from nixery.oci.references import described_by, is_index
from nixery.storage.store import BlobStore


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

    async def parts(self, document: Digest, *, within_index: bool = False) -> Mapping[Digest, int]:
        """Return the parts of a manifest or an index that are not marked yet, itself included, with sizes.

        Empty for one that is marked already, and for a missing one, whose parts cannot be found. An index
        within an index, which this server never makes, counts as an image without parts.

        Raises:
            StorageError: the storage cannot be read.
        """
        if document in self:
            return {}
        blob = await self._blobs.find(document)
        if blob is None:
            return {}
        found = {document: blob.size}
        content = await self._blobs.read(blob)
        if content is None:
            return found
        described = described_by(content)
        if is_index(content):
            for manifest, _ in () if within_index else described:
                found.update(await self.parts(manifest, within_index=True))
        else:
            found.update((part, size) for part, size in described if part not in self)
        return found


def _short(digest: Digest) -> int:
    return int(digest.hex[:16], 16)
