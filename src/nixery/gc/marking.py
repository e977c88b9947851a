"""Mark the blobs of images in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass

from nixery.gc.records import is_digest, read_image, read_layer, read_referrer
from nixery.oci.digest import Digest
from nixery.oci.documents import is_index, referenced_blobs
from nixery.storage.blobs import BlobStore
from nixery.storage.leases import leased_documents
from nixery.storage.records import IMAGES, LAYERS, REFERRERS, USES, RecordStore, decode

# The time of the last use, the digest or key, and whether it is the key of an image's record.
_Root = tuple[float, bytes, bool]


@dataclass(frozen=True, slots=True)
class Room:
    """Remaining room; ``None`` for no limit.

    Attributes:
        size: bytes of all blobs.
        blobs: how many.
        documents: manifests and indexes.
    """

    size: int | None = None
    blobs: int | None = None
    documents: int | None = None

    def holds(self, size: int, blobs: int, documents: int) -> bool:
        """Whether an addition fits."""
        wanted = ((self.size, size), (self.blobs, blobs), (self.documents, documents))
        return all(limit is None or needed <= limit for limit, needed in wanted)


class Marks:
    """A set of blobs to keep, in some 90 bytes for each: it stores the first 64 bits of their digests.

    If two blobs have those in common, both are kept, which is harmless.

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
        """Add blobs, with their sizes."""
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
        described = referenced_blobs(content)
        if is_index(content):
            for manifest, _ in () if within_index else described:
                found.update(await self.parts(manifest, within_index=True))
        else:
            found.update((part, size) for part, size in described if part not in self)
        return found


def _short(digest: Digest) -> int:
    return int(digest.hex[:16], 16)


class Marking:
    """Marks the blobs of images in use, from their leases down to their layers.

    Attributes:
        marks: the blobs to keep.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore) -> None:
        self._records = records
        self.marks = Marks(blobs)

    async def mark(self, cutoff: float, oldest: float | None, room: Room) -> None:
        """Mark the blobs to keep.

        Args:
            cutoff: anything used after this time is kept.
            oldest: anything not used after this time is deleted; ``None`` for no limit.
            room: once an image does not fit, it and all that were used before it are deleted.

        Raises:
            StorageError: the storage cannot be read.
        """
        await self._mark_layers(cutoff)
        documents = 0
        for used, key, is_image in await self._roots():
            parts: dict[Digest, int] = {}
            for document in await self._documents(key.hex(), is_image=is_image):
                found = await self.marks.parts(document)
                documents += bool(found)
                parts.update(found)
            if used <= cutoff:
                size, blobs = self.marks.size + sum(parts.values()), len(self.marks) + len(parts)
                if (oldest is not None and used < oldest) or not room.holds(size, blobs, documents):
                    break
            self.marks.add(parts)
        async for subject, attached in _referrers(self._records):
            if subject in self.marks:
                self.marks.add(await self.marks.parts(attached))

    async def look_again(self, since: float) -> None:
        """Mark also the images and layers that were used after a time.

        Raises:
            StorageError: the storage cannot be read.
        """
        async for listed in self._records.scan(USES):
            if listed.modified > since and is_digest(listed.key):
                for document in await self._documents(listed.key, is_image=False):
                    self.marks.add(await self.marks.parts(document))
        await self._mark_layers(since)

    async def _roots(self) -> list[_Root]:
        """Return the uses of images, the most recent first."""
        roots: list[_Root] = []
        # An image's record counts as its first use. A storage of an earlier version has no leases.
        for kind in (USES, IMAGES):
            async for listed in self._records.scan(kind):
                if is_digest(listed.key):
                    roots.append((listed.modified, bytes.fromhex(listed.key), kind == IMAGES))  # noqa: PERF401 -- no comprehension is asynchronous and readable
        roots.sort(reverse=True)
        return roots

    async def _documents(self, key: str, *, is_image: bool) -> Collection[Digest]:
        """Return the manifests and indexes that were used together."""
        if not is_image:
            itself = Digest(key)
            if itself in self.marks:
                return ()
            return {itself, *leased_documents(await self._records.get(USES, key))}
        # A torn record is written again by the next build.
        return decode(read_image, await self._records.get(IMAGES, key)) or ()

    async def _mark_layers(self, since: float) -> None:
        """Mark layers that were packed or reused after a time: an image that is being built has no manifest yet."""
        async for listed in self._records.scan(LAYERS):
            if listed.modified <= since:
                continue
            # A torn record is written again by the next build that needs the layer.
            layer = decode(read_layer, await self._records.get(LAYERS, listed.key))
            if layer is not None:
                self.marks.add({layer[0]: layer[1]})


async def _referrers(records: RecordStore) -> AsyncIterator[tuple[Digest, Digest]]:
    """Yield the subject of each attached manifest, and the manifest."""
    async for listed in records.scan(REFERRERS):
        attached = decode(read_referrer, await records.get(REFERRERS, listed.key))
        # The key begins with the subject.
        if attached is not None and is_digest(listed.key[:64]):
            yield Digest(listed.key[:64]), attached
