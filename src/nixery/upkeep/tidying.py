"""Deleting records that lead nowhere any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest
from nixery.pipeline.batch_records import BATCH_CLOSURES, BATCHES
from nixery.pipeline.build_cache import IMAGES, ImageRecord
from nixery.pipeline.evaluation_cache import EVALUATIONS
from nixery.pipeline.layer_publisher import LAYERS, LayerRecord
from nixery.pipeline.pin_records import PINS
from nixery.storage.catalogue import REFERRERS, TAGS
from nixery.storage.store import BlobStore, RecordStore
from nixery.storage.uses import USES

# Seconds for which records of these kinds stay at least: longer than any pin holds.
_DAY = 24 * 3600.0


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
