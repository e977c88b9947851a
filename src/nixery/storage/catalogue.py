"""Discovery: the tags that were built, and the manifests that are attached to others.

Each tag has a record of the kind ``tags-in-order``, whose key is the name of its image, a zero byte and the
tag, encoded so that keys have the order of these texts. So a page of names or tags is a short part of a
listing, and costs no read of a record, however many there are. An image is listed under one of its names,
since clients can ask for it under any number of others.

In storages of version 1, tags have records of the kind ``tags``, under hashes. ``Catalogue.migrate`` moves
them; until it is done, listings have both.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from itertools import chain
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from nixery.caching import LRUCache
from nixery.errors import InvalidDigest, InvalidName, InvalidReference, StorageError
from nixery.image.name import LONGEST_NAME, Tag, canonical_name, parse_reference
from nixery.oci.digest import Digest
from nixery.storage.records import (
    IMAGE_NAMES,
    KINDS,
    REFERRERS,
    TAGS,
    TAGS_IN_ORDER,
    CheckedDict,
    RecordStore,
    decode,
    ordered_key,
    text_of,
)

# Seconds after which the record of a tag that is pulled is renewed: records that no pull renews expire.
_RENEW_AFTER = 3600.0

# Bytes for the tags that this process knows to be recorded; each pull would read its record again otherwise.
_RECORDED_CAPACITY = 8 * 1024 * 1024

# Tags of one name that a listing of names reads before it asks for those after that name: what a bucket sends
# in a response.
_SKIPPED = 1000

# Keys that one page reads. The collector leaves no more, but another writer may have planted any number.
_MOST_READ = KINDS[TAGS_IN_ORDER].most

# Records that are read or moved at the same time: in a bucket, each takes a round trip.
_CONCURRENT = 16

# Tags of a manifest that its record keeps, the last used ones: rules may allow one, and no other.
MOST_TAGS = 32

# Keys that are listed to find the last manifests of a name.
_LISTED = 4000

# Descriptors in a list of referrers, and bytes of their records, at most: clients accept no larger index.
_REFERRERS, _MOST_REFERRER_BYTES = 1000, 4 * 1024 * 1024

_log = structlog.get_logger("nixery.storage")


class TagRecord(BaseModel):
    """A tag that was built."""

    name: str
    tag: str
    digest: str


class NameRecord(TagRecord):
    """A manifest or an index that a name stood for, and the tags under which it did.

    Attributes:
        others: tags besides ``tag``, the last one. Earlier versions neither read nor write them.
    """

    others: tuple[str, ...] = Field((), max_length=MOST_TAGS - 1)


class ReferrerRecord(BaseModel):
    """The public fields of the descriptor of a manifest that is attached to another one."""

    model_config = ConfigDict(populate_by_name=True)

    media_type: str | None = Field(None, alias="mediaType")
    digest: str
    size: int | None = Field(None, ge=0)
    artifact_type: str | None = Field(None, alias="artifactType")
    annotations: CheckedDict[str] = {}


class Catalogue:
    """Tags by name, and referrers by the manifest that they refer to.

    Each tag and each referrer has its own record, so that servers on one storage never overwrite each
    other's.

    Args:
        records: of the storage.
        clock: seconds; only differences matter.
    """

    def __init__(self, records: RecordStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._recorded: LRUCache[tuple[str, str], tuple[Digest, float]] = LRUCache(_RECORDED_CAPACITY)
        # Tags under which a name stood for a manifest, as far as this process wrote them, and when it last did.
        self._named: LRUCache[tuple[str, Digest], tuple[tuple[str, ...], float]] = LRUCache(
            _RECORDED_CAPACITY
        )
        self._is_migrated = False
        # Reads all records of the kind TAGS, once.
        self._reading: asyncio.Task[Mapping[str, TagRecord | None]] | None = None

    async def record_tag(self, name: str, tag: str, manifest: Digest) -> None:
        """Record that a tag was built. If that fails, no pull does; a later one records it."""
        # Most pulls are of a tag that is already recorded, under the client's spelling.
        if self._is_recorded(name, tag, manifest):
            return
        canonical = canonical_name(name)
        spellings = {name, canonical}
        is_new = not self._is_recorded(canonical, tag, manifest)
        # Before the write, so that concurrent requests do not write the same record.
        for spelling in spellings:
            self._recorded.put((spelling, tag), (manifest, self._clock()), len(spelling) + len(tag))
        if is_new and not await self._record(TagRecord(name=canonical, tag=tag, digest=str(manifest))):
            for spelling in spellings:
                self._recorded.discard((spelling, tag))  # the next pull tries again

    def _is_recorded(self, name: str, tag: str, manifest: Digest) -> bool:
        recorded, when = self._recorded.get((name, tag)) or (None, 0.0)
        return recorded == manifest and self._clock() - when < _RENEW_AFTER

    async def _record(self, record: TagRecord) -> bool:
        key = _key(record.name, record.tag)
        try:
            present = await self._records.get(TAGS_IN_ORDER, key)
        except StorageError as error:
            _log.warning("cannot record a tag", name=record.name, tag=record.tag, reason=str(error))
            return False
        return await self._write(TAGS_IN_ORDER, key, record, present)

    async def _write(self, kind: str, key: str, record: TagRecord, present: bytes | None) -> bool:
        content = record.model_dump_json(exclude_defaults=True).encode()
        try:
            if present == content:
                await self._records.renew(kind, key, content)
            else:
                await self._records.put(kind, key, content)
        except StorageError as error:
            _log.warning("cannot record a tag", name=record.name, tag=record.tag, reason=str(error))
            return False
        return True

    async def record_name(self, name: str, tag: str, manifest: Digest) -> None:
        """Record that a name stood for a manifest or an index: who may pull the name may pull it by its digest.

        If that fails, no pull does; a later one records it.
        """
        known, when = self._named.get((name, manifest)) or ((), 0.0)
        if tag in known and self._clock() - when < _RENEW_AFTER:
            return
        self._note_tags(name, manifest, (tag, *known))
        canonical = canonical_name(name)
        key = _hash(canonical) + manifest.hex
        written: frozenset[str] = frozenset()
        # Requests at the same time write the same record, and the last write wins: the one that ends last has to have
        # the tags of all of them.
        while not written.issuperset(noted := self._noted_tags(name, manifest) or (tag,)):
            try:
                present = await self._records.get(IMAGE_NAMES, key)
            except StorageError as error:
                _log.warning("cannot record a tag", name=canonical, tag=tag, reason=str(error))
                self._named.discard((name, manifest))
                return
            stored = _tags_of(canonical, manifest, present)
            # A record that has the tags stays as it is, and is renewed: servers would change the order forever.
            tags = stored if set(noted) <= set(stored) else _merged(noted, stored)
            record = NameRecord(name=canonical, tag=tags[0], digest=str(manifest), others=tags[1:])
            if not await self._write(IMAGE_NAMES, key, record, present):
                self._named.discard((name, manifest))
                return
            written = frozenset(tags)

    def _noted_tags(self, name: str, manifest: Digest) -> tuple[str, ...]:
        tags, _ = self._named.get((name, manifest)) or ((), 0.0)
        return tags

    def _note_tags(self, name: str, manifest: Digest, tags: Iterable[str]) -> None:
        merged = _merged(tags)
        self._named.put((name, manifest), (merged, self._clock()), len(name) + sum(map(len, merged)))

    async def tags(self, name: str, after: str, limit: int) -> list[str]:
        """Return some tags that were built for a name, in ASCII order.

        Args:
            name: of an image, under any of its names.
            after: any text; only larger tags are returned.
            limit: of the number of tags.

        Raises:
            StorageError: the storage cannot be listed.
        """
        canonical = canonical_name(name)
        # First, since a migration may move them meanwhile.
        old = {
            record.tag for record in await self._old_tags() if record.name == canonical and record.tag > after
        }
        found: list[str] = []
        async with aclosing(
            self._records.scan(TAGS_IN_ORDER, after=_key(canonical, _bounded(after)))
        ) as listing:
            read = 0
            async for listed in listing:
                named = _name_and_tag(listed.key)
                read += 1
                if read > _MOST_READ or (named and named[0] != canonical) or len(found) == limit:
                    break
                if named:
                    found.append(named[1])
        return sorted({*found, *old})[:limit] if old else found

    async def manifests(self, name: str, limit: int) -> list[tuple[Digest, tuple[str, ...]]]:
        """Return the manifests and indexes that a name last stood for, each with its tags, the latest first.

        Raises:
            StorageError: the storage cannot be listed.
        """
        prefix = _hash(canonical_name(name))
        entries: list[tuple[float, str]] = []
        async with aclosing(self._records.scan(IMAGE_NAMES, prefix)) as listing:
            async for listed in listing:
                entries.append((listed.modified, listed.key))
                if len(entries) == _LISTED:
                    break
        keys = [key for _, key in heapq.nlargest(limit, entries)]
        found: list[tuple[Digest, tuple[str, ...]]] = []
        for start in range(0, len(keys), _CONCURRENT):
            some = [Digest(key.removeprefix(prefix)) for key in keys[start : start + _CONCURRENT]]
            tags = await asyncio.gather(*(self.tags_of(name, digest) for digest in some))
            found += [(digest, its) for digest, its in zip(some, tags, strict=True) if its]
        return found

    async def tags_of(self, name: str, digest: Digest) -> tuple[str, ...]:
        """Return the last tags under which a name stood for a manifest or an index; none if it never did.

        Raises:
            StorageError: the storage cannot be read.
        """
        canonical = canonical_name(name)
        content = await self._records.get(IMAGE_NAMES, _hash(canonical) + digest.hex)
        return _tags_of(canonical, digest, content)

    async def names(self, after: str, limit: int) -> list[str]:
        """Return some names of images that were built, in ASCII order, one for each image.

        Args:
            after: any text; only larger names are returned.
            limit: of the number of names.

        Raises:
            StorageError: the storage cannot be listed.
        """
        old = {record.name for record in await self._old_tags() if record.name > after}
        found = await self._names(after, limit)
        return sorted({*found, *old})[:limit] if old else found

    async def _names(self, after: str, limit: int) -> list[str]:
        found: list[str] = []
        begin: str | None = _key_after(_bounded(after)) if after else ""
        read = 0
        while begin is not None and len(found) < limit and read < _MOST_READ:
            begin, more = await self._collect_names(found, begin, limit)
            read += more
        return found

    async def _collect_names(self, found: list[str], begin: str, limit: int) -> tuple[str | None, int]:
        """Append names from one listing.

        Returns:
            Where the next listing begins, ``None`` after the last name; and the number of keys read.
        """
        skipped, past = 0, _key_after(found[-1]) if found else ""
        read = 0
        async with aclosing(self._records.scan(TAGS_IN_ORDER, after=begin)) as listing:
            async for listed in listing:
                read += 1
                # Other tags of the last name. Decoding their keys would block the event loop for ten times as
                # long.
                named = _name_and_tag(listed.key) if listed.key > past else None
                if named is not None:
                    found.append(named[0])
                    skipped, past = 0, _key_after(named[0])
                    if len(found) == limit:
                        break
                else:
                    skipped += 1
                    if skipped == _SKIPPED:
                        return max(listed.key, past), read
                if read == _MOST_READ:
                    break
        return None, read

    async def referrers(self, subject: Digest) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests attached to another one, in the order of their digests.

        At most the first 1000, and the first 4 MiB.
        """
        keys: list[str] = []
        async with aclosing(self._records.scan(REFERRERS, subject.hex)) as listing:
            async for listed in listing:
                keys.append(listed.key)
                if len(keys) == _REFERRERS:
                    break
        found = []
        left = _MOST_REFERRER_BYTES
        for key in keys:
            content = await self._records.get(REFERRERS, key)
            left -= len(content or b"")
            if left < 0:
                break
            record = decode(_read_referrer, content)
            if record is not None and record.digest == f"sha256:{key.removeprefix(subject.hex)}":
                found.append(record.model_dump(by_alias=True, exclude_unset=True))
        return found

    async def is_referrer(self, subject: Digest, digest: Digest) -> bool:
        """Whether a manifest is attached to another one.

        Raises:
            StorageError: the storage cannot be read.
        """
        record = decode(_read_referrer, await self._records.get(REFERRERS, subject.hex + digest.hex))
        return record is not None and record.digest == str(digest)

    async def migrate(self) -> int:
        """Move the tags of a storage of version 1 to where they are listed; return how many there were.

        It can be interrupted at any time, and several servers can do it at once: a record is deleted after
        its successor was written.

        Raises:
            StorageError: the storage fails.
        """
        old = list((await self._read_old()).items())
        for start in range(0, len(old), _CONCURRENT):
            await asyncio.gather(
                *(self._move(key, record) for key, record in old[start : start + _CONCURRENT])
            )
        self._is_migrated, self._reading = True, None
        return len(old)

    async def _move(self, old_key: str, record: TagRecord | None) -> None:
        if record is not None:
            key = _key(record.name, record.tag)
            if await self._records.get(TAGS_IN_ORDER, key) is None:
                await self._records.put(TAGS_IN_ORDER, key, record.model_dump_json().encode())
        await self._records.delete(TAGS, old_key)

    async def _old_tags(self) -> list[TagRecord]:
        if self._is_migrated:
            return []
        found = await self._read_old()
        if not found:
            self._is_migrated = True
        return [record for record in found.values() if record is not None]

    async def _read_old(self) -> Mapping[str, TagRecord | None]:
        # Any number of requests share one reading.
        if self._reading is None or (
            self._reading.done() and (self._reading.cancelled() or self._reading.exception())
        ):
            self._reading = asyncio.ensure_future(self._read_all_old())
        return await asyncio.shield(self._reading)

    async def _read_all_old(self) -> Mapping[str, TagRecord | None]:
        keys: list[str] = []
        async with aclosing(self._records.scan(TAGS)) as listing:
            async for listed in listing:
                keys.append(listed.key)
                if len(keys) == KINDS[TAGS].most:
                    break  # more than the collector leaves
        found: dict[str, TagRecord | None] = {}
        for start in range(0, len(keys), _CONCURRENT):
            some = keys[start : start + _CONCURRENT]
            found.update(zip(some, await asyncio.gather(*map(self._read_old_tag, some)), strict=True))
        return found

    async def _read_old_tag(self, key: str) -> TagRecord | None:
        record = decode(TagRecord.model_validate_json, await self._records.get(TAGS, key))
        if record is None or key != _hash(record.name) + _hash(record.tag):
            return None
        try:
            canonical = canonical_name(record.name)
            is_tag = isinstance(parse_reference(record.tag), Tag)
        except (InvalidName, InvalidDigest, InvalidReference):
            return None
        # Even earlier versions recorded each image under the name that the client had for it.
        return record.model_copy(update={"name": canonical}) if is_tag else None


def _key(name: str, tag: str) -> str:
    return ordered_key(f"{name}\0{tag}".encode(errors="surrogatepass"))


def _key_after(name: str) -> str:
    # No name has characters between the zero byte and this one.
    return ordered_key(f"{name}\1".encode(errors="surrogatepass"))


def _bounded(text: str) -> str:
    # No name or tag is longer than this, or has one of these characters: the rest does not decide which of
    # them follow.
    return re.split("[\0\1]", text[: LONGEST_NAME + 1], maxsplit=1)[0]


def _name_and_tag(key: str) -> tuple[str, str] | None:
    """Decode a key; ``None`` for one that this code would not write."""
    try:
        name, separator, tag = text_of(key).decode("ascii").partition("\0")
        is_ours = separator and canonical_name(name) == name and isinstance(parse_reference(tag), Tag)
    except (ValueError, InvalidName, InvalidDigest, InvalidReference):
        return None
    return (name, tag) if is_ours else None


def _tags_of(name: str, manifest: Digest, content: bytes | None) -> tuple[str, ...]:
    """Return the tags of a record of the kind IMAGE_NAMES; none if it is missing, torn, or of another manifest."""
    record = decode(NameRecord.model_validate_json, content)
    if record is None or (record.name, record.digest) != (name, str(manifest)):
        return ()
    return _merged((record.tag, *record.others))


def _merged(*tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain(*tags)))[:MOST_TAGS]


def _read_referrer(content: bytes) -> ReferrerRecord:
    record = ReferrerRecord.model_validate_json(content)
    Digest.parse(record.digest)
    return record


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
