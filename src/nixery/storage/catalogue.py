"""What can be discovered: the tags that were built, and what is attached to images. All of it lives in records."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nixery.caching import LRUCache
from nixery.errors import InvalidDigest, InvalidName, InvalidReference, StorageError
from nixery.image.name import Tag, canonical_name, parse_reference
from nixery.oci.digest import Digest
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import RecordStore

TAGS = "tags"
REFERRERS = "referrers"

# Seconds after which the record of a tag that is pulled is written again: those that nobody pulls are deleted some day.
_RENEWED = 3600.0

# Bytes for the tags that this process knows to be recorded: each pull would read its record again otherwise.
_REMEMBERED = 8 * 1024 * 1024

# Cache size in bytes for parsed records: otherwise each listing would read them all again.
_READ = 32 * 1024 * 1024

# Concurrent reads of records: in a bucket, each takes a request.
_AT_ONCE = 16

# Descriptors in a list of referrers, at most.
_REFERRERS = 1000

_log = structlog.get_logger("nixery.storage")


class TagRecord(BaseModel):
    """A tag that was built."""

    name: str
    tag: str
    digest: str


class ReferrerRecord(BaseModel):
    """The public fields of the descriptor of a manifest that is attached to another one."""

    model_config = ConfigDict(populate_by_name=True)

    media_type: str | None = Field(None, alias="mediaType")
    digest: str
    size: int | None = Field(None, ge=0)
    artifact_type: str | None = Field(None, alias="artifactType")
    annotations: dict[str, str] | None = None


class Catalogue:
    """Tags by name, and referrers by the manifest that they refer to.

    Each tag and each referrer has a record of its own, so that servers on one storage never overwrite each
    other's. An image is listed under one of its names, since clients can ask for it under any number of
    others.
    """

    def __init__(self, records: RecordStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._recorded: LRUCache[tuple[str, str], tuple[Digest, float]] = LRUCache(_REMEMBERED)
        # Keyed by a digest of these.
        self._read: LRUCache[str, tuple[str, str]] = LRUCache(_READ)

    async def record_tag(self, name: str, tag: str, manifest: Digest) -> None:
        """Remember that a tag was built. If that cannot be written, it is missing in listings until a later pull, and no pull fails for it."""
        # Most pulls are of a tag that is already recorded, under the client's spelling.
        if self._is_recorded(name, tag, manifest):
            return
        canonical = canonical_name(name)
        spellings = {name, canonical}
        is_new = not self._is_recorded(canonical, tag, manifest)
        # Before the write, so that concurrent requests do not write the same record.
        for spelling in spellings:
            self._recorded.put((spelling, tag), (manifest, self._clock()), len(spelling) + len(tag))
        if is_new and not await self._record(canonical, tag, manifest):
            for spelling in spellings:
                self._recorded.discard((spelling, tag))  # the next pull tries again

    def _is_recorded(self, name: str, tag: str, manifest: Digest) -> bool:
        recorded, when = self._recorded.get((name, tag)) or (None, 0.0)
        return recorded == manifest and self._clock() - when < _RENEWED

    async def _record(self, name: str, tag: str, manifest: Digest) -> bool:
        key = _hash(name) + _hash(tag)
        content = TagRecord(name=name, tag=tag, digest=str(manifest)).model_dump_json().encode()
        try:
            if await self._records.get(TAGS, key) == content:
                await self._records.renew(TAGS, key, content)
            else:
                await self._records.put(TAGS, key, content)
        except StorageError as error:
            _log.warning("a tag cannot be written down", name=name, tag=tag, reason=str(error))
            return False
        return True

    async def tags(self, name: str) -> list[str]:
        """Return the tags built for a name, in ASCII order; empty if there are none."""
        # Earlier versions recorded each image under the name that the client had for it.
        found = [await self._tags(_hash(spelling)) for spelling in {canonical_name(name), name}]
        return sorted({tag for tags in found for _, tag in tags})

    async def names(self) -> list[str]:
        """Return a name of each image that was built, in ASCII order."""
        return sorted({name for name, _ in await self._tags("")})

    async def referrers(self, subject: Digest) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests attached to another one, in the order of their digests; the first 1000."""
        found = []
        for key in (await self._keys(REFERRERS, subject.hex))[:_REFERRERS]:
            try:
                record = ReferrerRecord.model_validate_json(await self._records.get(REFERRERS, key) or b"")
                if Digest.parse(record.digest).hex == key.removeprefix(subject.hex):
                    found.append(record.model_dump(by_alias=True, exclude_unset=True))
            except (ValidationError, InvalidDigest):
                continue  # torn
        return found

    async def _keys(self, kind: str, prefix: str) -> list[str]:
        keys = []
        async for listed in self._records.scan(kind, prefix):
            keys.append(listed.key)
            if len(keys) == KINDS[kind].most:
                break  # more records than the tidy-up leaves
        return sorted(keys)

    async def _tags(self, prefix: str) -> list[tuple[str, str]]:
        found = {key: self._read.get(key) for key in await self._keys(TAGS, prefix)}
        unread = [key for key, named in found.items() if named is None]
        for start in range(0, len(unread), _AT_ONCE):
            some = unread[start : start + _AT_ONCE]
            found.update(zip(some, await asyncio.gather(*map(self._tag, some)), strict=True))
        return [named for named in found.values() if named is not None]

    async def _tag(self, key: str) -> tuple[str, str] | None:
        """Return the name and the tag of a record; ``None`` if it is torn (the next pull rewrites it)."""
        try:
            record = TagRecord.model_validate_json(await self._records.get(TAGS, key) or b"")
            named = canonical_name(record.name), record.tag
            is_tag = isinstance(parse_reference(record.tag), Tag)
        except (ValidationError, InvalidName, InvalidDigest, InvalidReference):
            return None
        if not is_tag or key != _hash(record.name) + _hash(record.tag):
            return None
        self._read.put(key, named, len(record.name) + len(record.tag))
        return named


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
