"""Which blobs are held by something that is in use.

Finding out what is in use.

Which records can be read, by kind.

Delete records that lead to no blob, are too old, or are too many.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from nixery.builds.build_cache import IMAGES, ImageRecord
from nixery.builds.evaluation_cache import EVALUATED, EVALUATIONS
from nixery.builds.history import BUILDS, BuildReport
from nixery.builds.layers import LAYERS, LayerRecord
from nixery.builds.packages import LISTED, PACKAGES
from nixery.builds.pins import PINS, PinRecord
from nixery.builds.popularity import BATCH, BATCH_CLOSURES, BATCHES, REFERENCES
from nixery.errors import InvalidDigest
from nixery.gc.policy import Room
from nixery.oci.digest import Digest
from nixery.oci.documents import is_index, referenced_blobs
from nixery.storage.catalogue import REFERRERS, TAGS, TagRecord
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import COLLECTIONS, USES, claimed_together


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
        described = referenced_blobs(content)
        if is_index(content):
            for manifest, _ in () if within_index else described:
                found.update(await self.parts(manifest, within_index=True))
        else:
            found.update((part, size) for part, size in described if part not in self)
        return found


def _short(digest: Digest) -> int:
    return int(digest.hex[:16], 16)


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


Check = Callable[[bytes], bool]

_DESCRIPTOR: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def _readable(read: Callable[[bytes], object]) -> Check:
    def check(content: bytes) -> bool:
        try:
            read(content)
        except (ValidationError, InvalidDigest, KeyError):
            return False
        return True

    return check


def _layer(content: bytes) -> None:
    record = LayerRecord.model_validate_json(content)
    Digest.parse(record.digest)
    Digest.parse(record.diff_id)


# Whether the content of a record is what its kind has.
CHECKS: Mapping[str, Check] = {
    IMAGES: _readable(lambda content: ImageRecord.model_validate_json(content).documents),
    LAYERS: _readable(_layer),
    EVALUATIONS: _readable(EVALUATED.validate_json),
    BUILDS: _readable(BuildReport.model_validate_json),
    PACKAGES: _readable(LISTED.validate_json),
    BATCHES: _readable(BATCH.validate_json),
    BATCH_CLOSURES: _readable(REFERENCES.validate_json),
    PINS: _readable(PinRecord.model_validate_json),
    TAGS: _readable(lambda content: Digest.parse(TagRecord.model_validate_json(content).digest)),
    REFERRERS: _readable(lambda content: Digest.parse(str(_DESCRIPTOR.validate_json(content)["digest"]))),
    USES: lambda content: bool(claimed_together(content)),
}


# Seconds for which records of these kinds stay at least: longer than any pin holds.
_DAY = 24 * 3600.0

# Records that one pass finds, and then deletes; and concurrent deletions.
_BATCH = 20_000
_AT_ONCE = 16


async def delete_pointless_records(
    records: RecordStore, blobs: BlobStore, cutoff: float, oldest: float | None
) -> int:
    """Delete records that point to blobs which are gone, and what nobody asked for in a long time; return how many.

    Whether a record is renewed just before it is deleted, nobody can tell on every storage. So one that points to a blob goes after the
    blob: who renewed it then found the blob missing, and writes the record anew when he has stored it again.

    Args:
        records: to be tidied up.
        blobs: what they point to.
        cutoff: nothing that was written after that is deleted.
        oldest: tags, pins, evaluations and batches that were not written after that are deleted; ``None`` for none.

    Raises:
        StorageError: the storage does not do what is asked.
    """
    count = 0
    for kind in (USES, IMAGES, LAYERS, REFERRERS):
        async for key in _written_before(records, kind, cutoff):
            for digest in await _pointed_to(records, kind, key):
                if await blobs.find(digest) is None:
                    await records.delete(kind, key)
                    count += 1
                    break
    if oldest is not None:
        for kind in (TAGS, PINS, EVALUATIONS, BATCHES, BATCH_CLOSURES):
            async for key in _written_before(records, kind, min(cutoff - _DAY, oldest)):
                await records.delete(kind, key)
                count += 1
    return count


async def enforce_bounds(records: RecordStore, now: float, *, short_of_files: bool = False) -> int:
    """Delete records beyond the bounds of their kind, the oldest first; return how many.

    The collector alone deletes records of the kinds ``uses`` and ``collections``: the collector and servers
    that use images coordinate through them. Any other record may disappear at any time, and the server makes
    it again.

    Args:
        records: to tidy up.
        now: in seconds since the epoch, by the storage's clock.
        short_of_files: whether to delete a tenth of those that lead to no blobs, too.

    Raises:
        StorageError: the storage fails.
    """
    deleted = 0
    for kind, bounds in KINDS.items():
        if kind in {USES, COLLECTIONS}:
            continue
        old: list[str] = []
        count = 0
        async for listed in records.scan(kind):
            count += 1
            if now - listed.modified > bounds.age:
                old.append(listed.key)
            if len(old) == _BATCH:
                deleted += await _delete(records, kind, old)
                count, old = count - len(old), []
        deleted += await _delete(records, kind, old)
        count -= len(old)
        may_stay = bounds.most
        if count > bounds.most or (short_of_files and not bounds.leads_to_blobs):
            # Deletes a tenth more than it must, so that the next tidy-up does not start over.
            may_stay = min(count, bounds.most) * 9 // 10
        while count > may_stay:
            oldest = await _oldest(records, kind, min(count - may_stay, _BATCH))
            if not oldest:
                break  # others delete, too
            deleted += await _delete(records, kind, oldest)
            count -= len(oldest)
    return deleted


async def _oldest(records: RecordStore, kind: str, number: int) -> list[str]:
    """Return the keys of the oldest records; memory is bounded by their number."""
    found: list[tuple[float, str]] = []
    async for listed in records.scan(kind):
        # The youngest of them is on top of the heap.
        heapq.heappush(found, (-listed.modified, listed.key))
        if len(found) > number:
            heapq.heappop(found)
    return [key for _, key in found]


async def _delete(records: RecordStore, kind: str, keys: Sequence[str]) -> int:
    for start in range(0, len(keys), _AT_ONCE):
        await asyncio.gather(*(records.delete(kind, key) for key in keys[start : start + _AT_ONCE]))
    return len(keys)


async def _written_before(records: RecordStore, kind: str, time: float) -> AsyncIterator[str]:
    async for listed in records.scan(kind):
        if listed.modified < time:
            yield listed.key


async def _pointed_to(records: RecordStore, kind: str, key: str) -> Sequence[Digest]:
    try:
        if kind in {USES, REFERRERS}:
            return (Digest.parse(f"sha256:{key[:64]}"),)
        content = await records.get(kind, key) or b""
        if kind == IMAGES:
            return ImageRecord.model_validate_json(content).documents
        return (Digest.parse(LayerRecord.model_validate_json(content).digest),)
    except (ValueError, InvalidDigest):
        return ()  # torn: whoever needs it writes it anew, and scrubbing deletes it
