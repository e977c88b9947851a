"""Copying a storage into another one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from nixery.errors import BlobUnknown
from nixery.oci.digest import Digest
from nixery.storage.opening import Storage
from nixery.storage.records import (
    API_TOKEN_USES,
    API_TOKENS,
    BUILD_PROGRESS,
    CACHE_KEYS,
    COLLECTIONS,
    KINDS,
    QUOTA_USAGE,
    SIGNING_KEYS,
)

# A collection in progress in the source does not concern the target.
COPIED = tuple(
    kind
    for kind in KINDS
    if kind
    not in {COLLECTIONS, BUILD_PROGRESS, API_TOKENS, API_TOKEN_USES, SIGNING_KEYS, CACHE_KEYS, QUOTA_USAGE}
)

# Copied on demand: a copy that runs again would restore tokens that were revoked in the target, and a copy for tests
# would accept the tokens of the original.
_TOKENS = (API_TOKENS, API_TOKEN_USES)


@dataclass
class Copied:
    """Progress of a copy.

    Attributes:
        blobs: number of blobs in the source.
        copied: number of blobs that the target lacked.
        size: bytes that were copied.
        records: number of records, written now or before.
        broken: blobs whose bytes do not match their digests, which are left out.
    """

    blobs: int = 0
    copied: int = 0
    size: int = 0
    records: int = 0
    broken: list[Digest] = field(default_factory=list)


async def copy_storage(
    source: Storage, target: Storage, observe: Callable[[Copied], None], *, api_tokens: bool = False
) -> Copied:
    """Copy all blobs that the target lacks, and check the digest of each, then copy all records.

    An interrupted copy resumes. Records come last, so that every record in the target has its blobs. Records
    of the source beyond the bounds of their kind are left out.

    Args:
        source: only read.
        target: keeps its own contents.
        observe: called after each piece of work, with the same progress that this returns.
        api_tokens: whether to copy API tokens, too.

    Raises:
        StorageError: one of the storages fails.
    """
    done = Copied()
    async for listed in source.blobs.scan():
        done.blobs += 1
        await _copy_blob(source, target, listed.digest, done, observe)
        observe(done)
    for kind in (*COPIED, *(_TOKENS if api_tokens else ())):
        async for record in source.records.scan(kind):
            content = await source.records.get(kind, record.key)
            if content is None:
                continue  # deleted meanwhile
            if await target.records.get(kind, record.key) != content:
                await target.records.put(kind, record.key, content)
            done.records += 1
            observe(done)
    return done


async def _copy_blob(
    source: Storage, target: Storage, digest: Digest, done: Copied, observe: Callable[[Copied], None]
) -> None:
    blob = await source.blobs.find(digest)
    if blob is None or blob.size == 0:
        if await _exists(source, digest):
            done.broken.append(digest)
        else:
            done.blobs -= 1  # deleted meanwhile
        return
    found = await target.blobs.find(digest)
    if found is not None and found.size == blob.size:
        return
    actual = hashlib.sha256()
    with target.blobs.create() as writer:
        async for chunk in source.blobs.stream(blob, 0, blob.size - 1):
            await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(actual.update, chunk)
            done.size += len(chunk)
            observe(done)
        # Before the commit: the target may have a good blob under the actual digest of these bytes.
        if actual.hexdigest() != digest.hex:
            done.broken.append(digest)
            return
        await asyncio.to_thread(writer.commit)
    done.copied += 1


async def _exists(storage: Storage, digest: Digest) -> bool:
    try:
        await anext(aiter(storage.blobs.chunks(digest)), b"")
    except BlobUnknown:
        return False
    return True
