"""Delete records that lead to no blob, are too old, or are too many."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest
from nixery.pipeline.batch_records import BATCH_CLOSURES, BATCHES
from nixery.pipeline.build_cache import IMAGES, ImageRecord
from nixery.pipeline.evaluation_cache import EVALUATIONS
from nixery.pipeline.layer_publisher import LAYERS, LayerRecord
from nixery.pipeline.pin_records import PINS
from nixery.storage.catalogue import REFERRERS, TAGS
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import COLLECTIONS, USES

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
