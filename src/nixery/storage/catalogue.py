"""What can be discovered: the tags that were built, and what is attached to images. All of it lives in records."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from nixery.errors import StorageError
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.oci.digest import Digest
from nixery.storage.store import RecordStore

TAGS = "tags"
REFERRERS = "referrers"

# Seconds after which the record of a tag that is pulled is written again: those that nobody pulls are deleted some day.
_RENEWED = 3600.0

# Bytes for the tags that this process knows to be recorded: each pull would read its record again otherwise.
_REMEMBERED = 8 * 1024 * 1024

_log = structlog.get_logger("nixery.storage")


class TagRecord(BaseModel):
    """A tag that was built."""

    name: str
    tag: str
    digest: str


class Catalogue:
    """Tags by name, and referrers by what they refer to.

    Each tag and each referrer is a record of its own, so that servers on one store never overwrite each other's.
    """

    def __init__(self, records: RecordStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._recorded: LeastRecentlyUsed[tuple[str, str], tuple[Digest, float]] = LeastRecentlyUsed(
            _REMEMBERED
        )

    async def record_tag(self, name: str, tag: str, manifest: Digest) -> None:
        """Remember that a tag was built. If that cannot be written, it is missing in listings until a later pull, and no pull fails for it."""
        now = self._clock()
        recorded, when = self._recorded.get((name, tag)) or (None, 0.0)
        if recorded == manifest and now - when < _RENEWED:
            return
        self._recorded.put((name, tag), (manifest, now), len(name) + len(tag))
        key = _hash(name) + _hash(tag)
        content = TagRecord(name=name, tag=tag, digest=str(manifest)).model_dump_json().encode()
        try:
            if await self._records.get(TAGS, key) == content:
                await self._records.renew(TAGS, key, content)
            else:
                await self._records.put(TAGS, key, content)
        except StorageError as error:
            self._recorded.discard((name, tag))  # the next pull tries again
            _log.warning("a tag cannot be written down", name=name, tag=tag, reason=str(error))

    async def tags(self, name: str) -> list[str]:
        """Return the tags built for a name, in ASCII order; empty if there are none."""
        return sorted(record.tag for record in await self._tag_records(_hash(name)))

    async def names(self) -> list[str]:
        """Return all names something was built for, in ASCII order."""
        return sorted({record.name for record in await self._tag_records("")})

    async def referrers(self, subject: Digest) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests attached to another one, in the order of their digests."""
        return [json.loads(content) for content in await self._records.find(REFERRERS, subject.hex)]

    async def _tag_records(self, prefix: str) -> list[TagRecord]:
        found = []
        for content in await self._records.find(TAGS, prefix):
            try:
                found.append(TagRecord.model_validate_json(content))
            except ValidationError:
                continue  # torn: the next pull of the tag writes it anew
        return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
