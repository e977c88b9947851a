"""Store paths from binary caches: their closures without a store, and their contents without a disk.

What caches have said of a path is remembered for ever, since a store path never changes: narinfos in one record for
each closure, so that a known package costs one read, and the names of a path in one record for each NAR. Both are
checked again whenever they are read, as if a cache had just sent them.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Annotated, NamedTuple

import structlog
import zstandard
from pydantic import BaseModel, Field

from nixery.binary_caches.client import BinaryCaches, Missing
from nixery.binary_caches.narinfo import LARGEST_NARINFO, NarInfo
from nixery.binary_caches.read_ahead import ReadAhead
from nixery.caching import LRUCache
from nixery.closure import Closure, StorePath
from nixery.errors import AnswerTooLarge, StorageError, UnsafeContents
from nixery.packing.listing import Listing
from nixery.packing.nar_contents import NarContents
from nixery.storage.records import (
    KINDS,
    NAR_LISTINGS,
    SUBSTITUTED_CLOSURES,
    CheckedList,
    RecordStore,
    decode,
    decompressed,
)

# Store paths of one image, and bytes of what caches say of them. The largest NixOS systems have 10,000 paths.
_MOST_PATHS = 20_000
_LARGEST_CLOSURE = 16 * 1024 * 1024

# Bytes in memory: narinfos whose signatures are checked, and listings.
_NARINFO_MEMORY = 32 * 1024 * 1024
_LISTING_MEMORY = 64 * 1024 * 1024

# Bytes of names and targets in the listings of one image. The closure of a desktop has 50 MB.
_MOST_NAME_BYTES = 256 * 1024 * 1024

# Records that are read at once.
_READ_AT_ONCE = 16

_log = structlog.get_logger("nixery.caches")


class WrongNames(Exception):
    """The storage had other names of a store path than its NAR has."""


class RememberedNarInfo(BaseModel):
    """A narinfo, as a cache wrote it.

    Attributes:
        cache: its name, without secrets.
        text: of the narinfo.
    """

    cache: Annotated[str, Field(max_length=1024)]
    text: Annotated[str, Field(max_length=LARGEST_NARINFO)]


class _ClosureRecord(BaseModel):
    narinfos: Annotated[CheckedList[RememberedNarInfo], Field(max_length=_MOST_PATHS)]


class Substitution:
    """Finds closures in binary caches, and reads their contents from there.

    Args:
        caches: of the operator.
        records: of the storage, which remembers what the caches have said.
    """

    def __init__(self, caches: BinaryCaches, records: RecordStore) -> None:
        self._caches = caches
        self._records = records
        self._narinfos: LRUCache[StorePath, NarInfo] = LRUCache(_NARINFO_MEMORY)
        self._listings: LRUCache[str, Listing] = LRUCache(_LISTING_MEMORY)

    async def closures(self, paths: Collection[StorePath]) -> Mapping[StorePath, NarInfo]:
        """Return the closures of those paths of which binary caches have all, together.

        Raises:
            AnswerTooLarge: they exceed their limit.
            StorageError: the storage cannot be read.
        """
        found = {path: narinfo for path in paths if (narinfo := self._narinfos.get(path)) is not None}
        missing = [path for path in paths if path not in found or not self._completes(path, found)]
        for start in range(0, len(missing), _READ_AT_ONCE):
            some = missing[start : start + _READ_AT_ONCE]
            for remembered in await asyncio.gather(*map(self._remembered, some)):
                found.update(remembered)
        asked = [path for path in missing if _reachable(path, found) is None]
        if asked:
            await self._ask(asked, found)
        complete = {path: reached for path in paths if (reached := _reachable(path, found)) is not None}
        await asyncio.gather(
            *(self._remember(path, found, complete[path]) for path in asked if path in complete)
        )
        return {path: found[path] for reached in complete.values() for path in reached}

    async def close(self) -> None:
        """Close connections to the caches."""
        await self._caches.close()

    def explain(self, path: StorePath) -> Missing:
        """Say which path of a closure the caches do not have, and why."""
        seen: set[StorePath] = set()
        waiting = [path]
        while waiting:
            each = waiting.pop()
            if each in seen:
                continue
            seen.add(each)
            narinfo = self._narinfos.get(each)
            if narinfo is None:
                return self._caches.explain(each)
            waiting += narinfo.info.references
        return self._caches.explain(path)

    def needs_login(self, narinfo: NarInfo) -> bool:
        """Whether a path comes from a binary cache that may not be open to all."""
        return self._caches.needs_login(narinfo)

    @contextmanager
    def contents(
        self, closure: Closure, narinfos: Mapping[StorePath, NarInfo]
    ) -> Iterator[SubstitutedContents]:
        """Provide the contents of the paths of a closure that come from caches, while the context lasts.

        For the event loop; threads use what it yields.
        """
        names = Names(self, {path: closure[path].nar_hash for path in narinfos})
        ended = threading.Event()

        def open_nar(path: StorePath, memory: int) -> AbstractContextManager[Iterator[bytes]]:
            names.require_room(path)
            return self._caches.open(narinfos[path], memory, lambda: not ended.is_set())

        try:
            with ReadAhead(open_nar) as nars:
                files = NarContents([closure[path] for path in narinfos], names, nars.open, nars.expect)
                yield SubstitutedContents(files, names)
        finally:
            # A cache that has become silent is not asked again on behalf of a build that has ended.
            ended.set()

    async def listing(self, nar_hash: str) -> Listing | None:
        """Return the names of a store path; ``None`` if no server of the storage has read its NAR."""
        known = self._listings.get(nar_hash)
        if known is not None:
            return known
        content = None
        with suppress(StorageError):  # then its NAR is read again
            content = await self._records.get(NAR_LISTINGS, nar_hash)
        listing = await asyncio.to_thread(decode, Listing.decode, content)
        if listing is not None:
            self._keep(nar_hash, listing)
        return listing

    async def keep_listing(self, nar_hash: str, listing: Listing) -> None:
        """Remember the names of a store path. Without room for it, they are read again."""
        content = await asyncio.to_thread(listing.encode)
        self._keep(nar_hash, listing)
        if len(content) <= KINDS[NAR_LISTINGS].largest:
            with suppress(StorageError):
                await self._records.put(NAR_LISTINGS, nar_hash, content)

    def _keep(self, nar_hash: str, listing: Listing) -> None:
        # Not by the bytes of the record: 64 MiB of a hostile package's names compress to some kilobytes.
        self._listings.put(nar_hash, listing, listing.size)

    def _completes(self, path: StorePath, found: dict[StorePath, NarInfo]) -> bool:
        """Add the closure of a path from memory, as far as it is there; return whether that is all of it."""
        waiting = [path]
        while waiting:
            for reference in found[waiting.pop()].info.references:
                if reference not in found:
                    narinfo = self._narinfos.get(reference)
                    if narinfo is None:
                        return False
                    found[reference] = narinfo
                    waiting.append(reference)
        return True

    async def _ask(self, paths: Iterable[StorePath], found: dict[StorePath, NarInfo]) -> None:
        """Ask the caches for paths and all that these need, level by level."""
        left = _LARGEST_CLOSURE
        absent: set[StorePath] = set()
        waiting = _unknown(paths, found, absent)
        while waiting:
            if len(found) + len(waiting) > _MOST_PATHS:
                raise AnswerTooLarge("the list of all store paths that the image needs", _LARGEST_CLOSURE)
            try:
                answers = await self._caches.find(waiting, left)
            except AnswerTooLarge as error:
                raise AnswerTooLarge(
                    "the list of all store paths that the image needs", _LARGEST_CLOSURE
                ) from error
            for path, narinfo in answers.items():
                left -= len(narinfo.text)
                found[path] = narinfo
                self._narinfos.put(path, narinfo, 2 * len(narinfo.text))
            absent |= waiting - answers.keys()
            waiting = _unknown(waiting & answers.keys(), found, absent)

    async def _remembered(self, path: StorePath) -> Mapping[StorePath, NarInfo]:
        content = await self._records.get(SUBSTITUTED_CLOSURES, _key(path))
        found: Mapping[StorePath, NarInfo] | None = await asyncio.to_thread(
            decode, self._read_closure, content
        )
        for each, narinfo in (found or {}).items():
            self._narinfos.put(each, narinfo, 2 * len(narinfo.text))
        return found or {}

    def _read_closure(self, content: bytes) -> Mapping[StorePath, NarInfo]:
        found = (
            self._caches.read(remembered.text.encode(), _path_of(remembered.text), remembered.cache)
            for remembered in read_narinfos(content)
        )
        return {narinfo.info.path: narinfo for narinfo in found}

    async def _remember(
        self, path: StorePath, found: Mapping[StorePath, NarInfo], reached: Collection[StorePath]
    ) -> None:
        narinfos = [found[each] for each in sorted(reached)]
        content = await asyncio.to_thread(_closure_record, narinfos)
        if len(content) <= KINDS[SUBSTITUTED_CLOSURES].largest:
            with suppress(StorageError):  # then the caches are asked again
                await self._records.put(SUBSTITUTED_CLOSURES, _key(path), content)


class Names(MutableMapping[StorePath, Listing]):
    """The names of store paths: known ones, and those that packing finds. For threads, except for its coroutines.

    Args:
        substitution: remembers them.
        nar_hashes: of the store paths.
    """

    def __init__(self, substitution: Substitution, nar_hashes: Mapping[StorePath, str]) -> None:
        self._substitution = substitution
        self._nar_hashes = nar_hashes
        self._loop = asyncio.get_running_loop()
        self._known: dict[StorePath, Listing] = {}
        self._left = _MOST_NAME_BYTES
        # Threads and the event loop add listings.
        self._lock = threading.Lock()
        # Contents of each listing that are remembered already.
        self._remembered: dict[StorePath, int] = {}
        self._wrong: set[StorePath] = set()

    async def have(self, paths: Iterable[StorePath]) -> bool:
        """Whether the names of all these paths are known; reads them ahead, side by side."""
        wanted = [path for path in paths if path in self._nar_hashes]
        for start in range(0, len(wanted), _READ_AT_ONCE):
            some = wanted[start : start + _READ_AT_ONCE]
            if not all(await asyncio.gather(*map(self._load, some))):
                return False
        return True

    async def keep(self) -> None:
        """Remember the names, and the contents of files, that are new.

        Raises:
            WrongNames: the storage had wrong ones, which are replaced now; a root file system may be planned from them.
        """
        for path, listing in list(self._known.items()):
            if path in self._wrong or self._remembered.get(path) != len(listing.kept.items()):
                await self._substitution.keep_listing(self._nar_hashes[path], listing)
        if self._wrong:
            _log.warning(
                "replaced wrong names of store paths in the storage", paths=sorted(map(str, self._wrong))
            )
            raise WrongNames

    async def _load(self, path: StorePath) -> Listing | None:
        listing = await self._substitution.listing(self._nar_hashes[path])
        if listing is not None and self._add(path, listing, replace=False):
            self._remembered[path] = len(listing.kept.items())
        return self._known.get(path)

    def _add(self, path: StorePath, listing: Listing, *, replace: bool) -> bool:
        """Add a listing, within the limit of the image; return whether it was added.

        Args:
            path: its store path.
            listing: of the store path.
            replace: whether it comes from a NAR. A record, which may be wrong, replaces nothing that a NAR has given
                meanwhile.

        Raises:
            UnsafeContents: they exceed it together.
        """
        with self._lock:
            before = self._known.get(path)
            if before is not None and not replace:
                return False
            self._left -= listing.text_size - (before.text_size if before is not None else 0)
            self.require_room(path)
            self._known[path] = listing
            return True

    def require_room(self, path: StorePath) -> None:
        """Check that the limit is not exceeded yet, before another store path is fetched in vain.

        Raises:
            UnsafeContents: it is.
        """
        if self._left < 0:
            raise UnsafeContents(
                str(path).encode(),
                f"with it, the names of the image's store paths have more than {_MOST_NAME_BYTES:,} bytes",
            )

    def __getitem__(self, path: StorePath) -> Listing:
        listing = self._known.get(path)
        if listing is None:
            listing = asyncio.run_coroutine_threadsafe(self._load(path), self._loop).result()
        if listing is None:
            raise KeyError(path)
        return listing

    def __setitem__(self, path: StorePath, listing: Listing) -> None:
        known = self._known.get(path)
        if known is not None and not known.agrees_with(listing):
            self._wrong.add(path)
        self._add(path, listing, replace=True)

    def __delitem__(self, path: StorePath) -> None:
        with self._lock:
            self._left += self._known.pop(path).text_size

    def __iter__(self) -> Iterator[StorePath]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class SubstitutedContents(NamedTuple):
    """The contents of an image's store paths from binary caches.

    Attributes:
        files: read by packing.
        names: of the same store paths.
    """

    files: NarContents
    names: Names


def read_narinfos(content: bytes) -> Sequence[RememberedNarInfo]:
    """Read the record of a closure. Nothing of it is checked against keys.

    Raises:
        ValueError: it is torn, too large, or has another schema.
    """
    return _ClosureRecord.model_validate_json(decompressed(content, _LARGEST_CLOSURE)).narinfos


def _key(path: StorePath) -> str:
    return path.base_name[:32].encode().hex()


def _path_of(narinfo: str) -> StorePath:
    found = re.search(r"^StorePath: (.*)$", narinfo, re.MULTILINE)
    if found is None:
        raise ValueError("a remembered narinfo has no store path")
    return StorePath.parse(found[1])


def _unknown(
    paths: Iterable[StorePath], found: Mapping[StorePath, NarInfo], absent: Collection[StorePath]
) -> set[StorePath]:
    """The paths without a narinfo to which these ones lead."""
    unknown: set[StorePath] = set()
    seen: set[StorePath] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen or path in absent:
            continue
        seen.add(path)
        if path in found:
            waiting += found[path].info.references
        else:
            unknown.add(path)
    return unknown


def _reachable(path: StorePath, found: Mapping[StorePath, NarInfo]) -> set[StorePath] | None:
    """The closure of a path; ``None`` if some of it is missing."""
    reached: set[StorePath] = set()
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each not in reached:
            if each not in found:
                return None
            reached.add(each)
            waiting += found[each].info.references
    return reached


def _closure_record(narinfos: Sequence[NarInfo]) -> bytes:
    record = _ClosureRecord(
        narinfos=[RememberedNarInfo(cache=each.cache, text=each.text) for each in narinfos]
    )
    return zstandard.compress(record.model_dump_json().encode())
