"""Records: the schema of each kind, and deleting records without blobs, too old ones, and too many.

The collector follows records by their schemas, and the scrubber checks them. Schemas belong to the code that
writes a kind, so their list is here, above that code; the list of bounds is in ``nixery.storage.records``,
below it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from pydantic import TypeAdapter

from nixery.access.api_tokens import read_api_token
from nixery.access.registry_tokens import read_signing_key
from nixery.access.shared_usage import read_usage
from nixery.builds.build_cache import ImageRecord
from nixery.builds.cache_signing import CacheKey
from nixery.builds.evaluation_cache import EVALUATED
from nixery.builds.history import BuildReport
from nixery.builds.image_closure import decode_closure
from nixery.builds.index_records import decode_part, validate_index
from nixery.builds.layers import LayerRecord
from nixery.builds.pins import PinRecord
from nixery.builds.popularity import BATCH, REFERENCES
from nixery.builds.substitution import read_narinfos
from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest
from nixery.packing.listing import Listing
from nixery.storage.blobs import BlobStore
from nixery.storage.catalogue import TagRecord
from nixery.storage.leases import leased_documents
from nixery.storage.records import (
    API_TOKEN_USES,
    API_TOKENS,
    BATCH_CLOSURES,
    BATCHES,
    BUILD_PROGRESS,
    BUILDS,
    CACHE_KEYS,
    COLLECTIONS,
    EVALUATIONS,
    IMAGE_CLOSURES,
    IMAGE_NAMES,
    IMAGES,
    KINDS,
    LAYERS,
    NAR_LISTINGS,
    PACKAGE_DETAILS,
    PACKAGES,
    PINS,
    QUOTA_USAGE,
    REFERRERS,
    SIGNING_KEYS,
    SUBSTITUTED_CLOSURES,
    TAGS,
    TAGS_IN_ORDER,
    USES,
    RecordStore,
    decode,
)

# Seconds for which tags, pins, evaluations and batches are kept at least: longer than any pin is valid.
_DAY = 24 * 3600.0

# Records that one pass finds before it deletes them, and deletions at the same time.
_BATCH = 20_000
_CONCURRENT = 16

# Kinds whose records no bound deletes.
_EXEMPT = frozenset({USES, COLLECTIONS, API_TOKENS})

Check = Callable[[bytes], bool]

_DESCRIPTOR: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def read_image(content: bytes) -> Sequence[Digest]:
    """Return the manifests of an image's record.

    Raises:
        ValueError: the record is torn.
        InvalidDigest: likewise.
    """
    return ImageRecord.model_validate_json(content).documents


def read_layer(content: bytes) -> tuple[Digest, int]:
    """Return the digest and the size of a layer.

    Raises:
        ValueError: the record is torn.
        InvalidDigest: likewise.
    """
    record = LayerRecord.model_validate_json(content)
    Digest.parse(record.diff_id)
    return Digest.parse(record.digest), record.size


def read_referrer(content: bytes) -> Digest:
    """Return the digest of an attached manifest.

    Raises:
        ValueError: the record is torn.
        KeyError: likewise.
        InvalidDigest: likewise.
    """
    return Digest.parse(str(_DESCRIPTOR.validate_json(content)["digest"]))


def _read_tag(content: bytes) -> Digest:
    return Digest.parse(TagRecord.model_validate_json(content).digest)


def _readable(read: Callable[[bytes], object]) -> Check:
    return lambda content: decode(read, content) is not None


# Whether a record matches the schema of its kind. A record of the kind ``collections`` belongs to its
# collector alone.
CHECKS: Mapping[str, Check] = {
    IMAGES: _readable(read_image),
    LAYERS: _readable(read_layer),
    IMAGE_CLOSURES: _readable(decode_closure),
    EVALUATIONS: _readable(EVALUATED.validate_json),
    BUILDS: _readable(BuildReport.model_validate_json),
    BUILD_PROGRESS: _readable(BuildReport.model_validate_json),
    PACKAGES: _readable(validate_index),
    PACKAGE_DETAILS: _readable(decode_part),
    BATCHES: _readable(BATCH.validate_json),
    BATCH_CLOSURES: _readable(REFERENCES.validate_json),
    PINS: _readable(PinRecord.model_validate_json),
    TAGS_IN_ORDER: _readable(_read_tag),
    TAGS: _readable(_read_tag),
    IMAGE_NAMES: _readable(_read_tag),
    REFERRERS: _readable(read_referrer),
    USES: lambda content: bool(leased_documents(content)),
    # A token whose record is torn is refused anyway.
    API_TOKENS: _readable(read_api_token),
    SIGNING_KEYS: _readable(read_signing_key),
    CACHE_KEYS: _readable(CacheKey.parse),
    API_TOKEN_USES: lambda content: content == b"{}",
    SUBSTITUTED_CLOSURES: _readable(read_narinfos),
    NAR_LISTINGS: _readable(Listing.decode),
    QUOTA_USAGE: _readable(read_usage),
}


def is_digest(key: str) -> bool:
    """Whether the key of a record is the hexadecimal part of a digest."""
    try:
        Digest.parse(f"sha256:{key}")
    except InvalidDigest:
        return False
    return True


async def delete_pointless_records(
    records: RecordStore, blobs: BlobStore, cutoff: float, oldest: float | None
) -> int:
    """Delete records of deleted blobs, and records that were not used for a long time; return how many.

    A record may be renewed just before it is deleted. So a record that points to a blob is deleted after the
    blob: the process that renewed it then finds the blob missing, and writes the record again when it has
    stored the blob.

    Args:
        records: of a storage.
        blobs: of the same storage.
        cutoff: records that were written after it are kept.
        oldest: tags, pins, evaluations and batches that were not written after it are deleted; ``None`` for
            none.

    Raises:
        StorageError: the storage fails.
    """
    count = 0
    for kind in (USES, IMAGES, LAYERS, REFERRERS, IMAGE_CLOSURES):
        async for key in _written_before(records, kind, cutoff):
            for digest in await _pointed_to(records, kind, key):
                if await blobs.find(digest) is None:
                    await records.delete(kind, key)
                    count += 1
                    break
    if oldest is not None:
        for kind in (TAGS_IN_ORDER, TAGS, PINS, EVALUATIONS, BATCHES, BATCH_CLOSURES):
            async for key in _written_before(records, kind, min(cutoff - _DAY, oldest)):
                await records.delete(kind, key)
                count += 1
    return count


async def enforce_bounds(records: RecordStore, now: float, *, low_on_inodes: bool = False) -> int:
    """Delete records beyond the bounds of their kind, the oldest first; return how many.

    The collector alone deletes records of the kinds ``uses`` and ``collections``: the collector and servers
    that use images coordinate through them. API tokens stay until an operator revokes them. Any other record may
    disappear at any time, and the server makes it again.

    Args:
        records: of a storage.
        now: in seconds since the epoch, by the storage's clock.
        low_on_inodes: whether to also delete a tenth of the records that lead to no blobs.

    Raises:
        StorageError: the storage fails.
    """
    deleted = 0
    for kind, bounds in KINDS.items():
        if kind in _EXEMPT:
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
        limit = bounds.most
        if count > bounds.most or (low_on_inodes and not bounds.leads_to_blobs):
            # Deletes a tenth more than necessary, so that the next pass finds no new excess at once.
            limit = min(count, bounds.most) * 9 // 10
        while count > limit:
            oldest = await _oldest(records, kind, min(count - limit, _BATCH))
            if not oldest:
                break  # other processes delete records, too
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
    for start in range(0, len(keys), _CONCURRENT):
        await asyncio.gather(*(records.delete(kind, key) for key in keys[start : start + _CONCURRENT]))
    return len(keys)


async def _written_before(records: RecordStore, kind: str, time: float) -> AsyncIterator[str]:
    async for listed in records.scan(kind):
        if listed.modified < time:
            yield listed.key


async def _pointed_to(records: RecordStore, kind: str, key: str) -> Sequence[Digest]:
    # A torn record points nowhere: the scrubber deletes it, or its owner rewrites it.
    if kind in {USES, REFERRERS, IMAGE_CLOSURES}:
        return (Digest(key[:64]),) if is_digest(key[:64]) else ()
    content = await records.get(kind, key)
    if kind == IMAGES:
        return decode(read_image, content) or ()
    layer = decode(read_layer, content)
    return () if layer is None else layer[:1]
