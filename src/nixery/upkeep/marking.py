"""Finding out what is in use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest
from nixery.pipeline.build_cache import IMAGES, ImageRecord
from nixery.pipeline.layer_publisher import LAYERS, LayerRecord
from nixery.storage.catalogue import REFERRERS
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import USES, claimed_together
from nixery.upkeep.limits import Room
from nixery.upkeep.marks import Marks

# The time of the last use, what was used, and whether that is the key of an image's record.
_Root = tuple[float, bytes, bool]


class Marking:
    """Marks blobs from what was used down to layers.

    Attributes:
        marks: what is held.
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
        """Mark what was used after a time, too.

        Raises:
            StorageError: the storage cannot be asked.
        """
        async for listed in self._records.scan(USES):
            if listed.modified > since and _is_digest(listed.key):
                for document in await self._documents(listed.key, is_image=False):
                    self.marks.add(await self.marks.parts(document))
        await self._mark_layers(since)

    async def _roots(self) -> list[_Root]:
        """Return what was used, the last one first."""
        roots: list[_Root] = []
        # An image's record is a use, too: the first one. A store of an earlier version has no others.
        for kind in (USES, IMAGES):
            async for listed in self._records.scan(kind):
                if _is_digest(listed.key):
                    roots.append((listed.modified, bytes.fromhex(listed.key), kind == IMAGES))  # noqa: PERF401 -- no comprehension is asynchronous and readable
        roots.sort(reverse=True)
        return roots

    async def _documents(self, key: str, *, is_image: bool) -> Collection[Digest]:
        """Return the manifests and indexes that were used together."""
        if not is_image:
            itself = Digest(key)
            if itself in self.marks:
                return ()
            return {itself, *claimed_together(await self._records.get(USES, key) or b"")}
        content = await self._records.get(IMAGES, key)
        try:
            return ImageRecord.model_validate_json(content or b"").documents
        except (ValueError, InvalidDigest):
            return ()  # torn: the build writes it anew

    async def _mark_layers(self, since: float) -> None:
        """Mark layers that were packed or reused after a time: an image that is being built has no manifest yet."""
        async for listed in self._records.scan(LAYERS):
            if listed.modified <= since:
                continue
            content = await self._records.get(LAYERS, listed.key)
            try:
                record = LayerRecord.model_validate_json(content or b"")
                self.marks.add({Digest.parse(record.digest): record.size})
            except (ValueError, InvalidDigest):
                continue  # torn: whoever needs the layer packs it again


async def _referrers(records: RecordStore) -> AsyncIterator[tuple[Digest, Digest]]:
    """Yield what something is attached to, and what is attached."""
    async for listed in records.scan(REFERRERS):
        content = await records.get(REFERRERS, listed.key)
        try:
            # The key begins with the subject.
            subject = Digest.parse(f"sha256:{listed.key[:64]}")
            yield subject, Digest.parse(json.loads(content or b"")["digest"])
        except (ValueError, KeyError, TypeError, InvalidDigest):
            continue


def _is_digest(key: str) -> bool:
    try:
        Digest.parse(f"sha256:{key}")
    except InvalidDigest:
        return False
    return True
