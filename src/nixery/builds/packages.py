"""All names of a package set: an index for searches and completion."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

import cachetools
from pydantic import TypeAdapter, ValidationError
from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.caching import SingleFlight, TTLCache, size_of_error
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    EvaluationFailed,
    NixTimedOut,
    NixUnusable,
    StorageError,
    TooBusy,
)
from nixery.image.name import LONGEST_NAME
from nixery.image.platform import Platform
from nixery.nix.packages import Details
from nixery.nix.realisation import Nix
from nixery.oci.documents import canonical_json
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import PACKAGES, RecordStore

LISTED: TypeAdapter[dict[str, Details]] = TypeAdapter(dict[str, Details])

# Concurrent and queued listings of package sets. Each evaluates a whole set, and may use all the memory that
# an evaluation is allowed.
_AT_ONCE, _QUEUE = 1, 4

# Bytes of remembered failures.
_FAILURES = 1024 * 1024

# Package sets in memory; one of 60,000 packages takes some 25 MB.
_IN_MEMORY = 3

# And in the storage, where one takes some 7 MB.
_STORED = 5

# The most names that are sorted for one search.
_MANY = 2000

# A search for similar names: least and greatest length of its text, and the least similarity (0 to 1).
# Longer texts take several times as long for each of maybe 100,000 names, and no user types them.
_FUZZY, _LONGEST_FUZZY, _SIMILAR = 3, 64, 0.6

# A name has to be valid as one component of an image's name.
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedPackage:
    """A package whose name can be part of an image's name."""

    name: str
    version: str
    description: str


class PackageNames:
    """The names of one state of a package set, sorted."""

    def __init__(self, details: Mapping[str, Details]) -> None:
        packages: dict[str, Details] = {}
        for attribute, found in sorted(details.items()):
            # As in requests: in lower case, and a name may begin with a digit where an attribute cannot.
            name = attribute.lower()
            name = name[1:] if re.match(r"_[0-9]", name) else name
            if len(name) <= LONGEST_NAME and _COMPONENT.fullmatch(name):
                packages.setdefault(name, found)
        self._packages = packages
        self._names = sorted(packages)
        self._by_length = sorted(self._names, key=len)
        # Searching one text takes a tenth of the time of searching all names.
        self._text = "\n".join(["", *self._by_length, ""])

    def __len__(self) -> int:
        return len(self._names)

    def search(self, text: str, limit: int) -> Sequence[ListedPackage]:
        """Find names that begin with a text, the shortest first, then names that contain it; else similar names."""
        text = text.lower().strip()
        if not text.isprintable():
            return []
        first, last = bisect_left(self._names, text), bisect_left(self._names, text + "\x7f")
        if last - first > _MANY:
            # Among so many, a scan by length soon finds enough.
            begin = (name for name in self._by_length if name.startswith(text))
            return [self._listed(name) for name in islice(begin, limit)]
        found = heapq.nsmallest(limit, self._names[first:last], key=lambda name: (len(name), name))
        if len(found) < limit and text:
            within = (name for name in self._containing(text) if not name.startswith(text))
            found += islice(within, limit - len(found))
        if not found and _FUZZY <= len(text) <= _LONGEST_FUZZY:
            # The first letter is rarely mistyped, and a comparison with all names would take ten times as
            # long.
            first, last = bisect_left(self._names, text[0]), bisect_left(self._names, text[0] + "\x7f")
            near = process.extract(
                text,
                self._names[first:last],
                scorer=OSA.normalized_similarity,
                score_cutoff=_SIMILAR,
                limit=limit,
            )
            found = [name for name, _, _ in near]
        return [self._listed(name) for name in found]

    def get(self, name: str) -> ListedPackage | None:
        """Return a package; ``None`` if the set has none of that name."""
        return self._listed(name) if name in self._packages else None

    def _containing(self, text: str) -> Iterator[str]:
        """Names that contain a text, the shortest first."""
        at = self._text.find(text)
        while at >= 0:
            end = self._text.find("\n", at)
            yield self._text[self._text.rfind("\n", 0, at) + 1 : end]
            at = self._text.find(text, end)

    def _listed(self, name: str) -> ListedPackage:
        details = self._packages[name]
        return ListedPackage(name, details.version, details.description)


class PackageIndex:
    """The names of each state of the package source that a client asked about: listed once, then stored.

    Args:
        pins: of tags.
        source: provides package sets.
        nix: lists them.
        platform: whose packages are listed.
        records: shared by all servers.
        identity: of this program, whose expressions determine the list.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- everything that a list depends on
        self,
        pins: Pins,
        source: PackageSource,
        nix: Nix,
        platform: Platform,
        records: RecordStore,
        identity: str,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pins = pins
        self._source = source
        self._nix = nix
        self._platform = platform
        self._records = records
        self._identity = identity
        self._failure_time_to_live = failure_time_to_live
        self._failures: TTLCache[Pin, BuildError] = TTLCache(_FAILURES, clock)
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LISTINGS)
        self._recent: cachetools.LRUCache[Pin, PackageNames] = cachetools.LRUCache(_IN_MEMORY)
        self._in_flight: SingleFlight[Pin, PackageNames] = SingleFlight()

    async def names(self, tag: str) -> PackageNames:
        """Return the names of a tag's package set. Listing a set for the first time takes seconds.

        Raises:
            TooBusy: the queue for listing is full.
            NixeryError: the package set cannot be opened or listed, now or a moment ago.
        """
        pin = (await self._pins.pin(tag)).pin
        names = self._recent.get(pin)
        return names if names is not None else await self._in_flight.run(pin, partial(self._load, pin))

    async def close(self) -> None:
        """Stop listing."""
        await self._in_flight.close()

    async def _load(self, pin: Pin) -> PackageNames:
        parts = [self._identity, pin.source, pin.identity, self._platform.nix_system]
        key = hashlib.sha256(canonical_json(parts)).hexdigest()
        content = await self._records.get(PACKAGES, key)
        details = await asyncio.to_thread(_read, content) if content is not None else None
        if details is None:
            details = await self._list(pin)
            # With a full storage, the index works from memory.
            with suppress(StorageError):
                content = await asyncio.to_thread(LISTED.dump_json, dict(details))
                await self._records.put(PACKAGES, key, content)
                await self._evict()
        names = self._recent[pin] = await asyncio.to_thread(PackageNames, details)
        return names

    async def _list(self, pin: Pin) -> Mapping[str, Details]:
        failure = self._failures.get(pin)
        if failure is not None:
            raise failure.without_frames()
        async with self._slots.slot():
            try:
                async with self._source.open(pin) as package_set:
                    try:
                        return await self._nix.index(self._platform, package_set, details=True)
                    except (AnswerTooLarge, NixTimedOut, EvaluationFailed, NixUnusable):
                        # The set is too large, or has errors that Nix cannot catch. Its names can still be
                        # listed.
                        return await self._nix.index(self._platform, package_set, details=False)
            except BuildError as error:
                # The search field sends a request for each key that a user types.
                self._failures.put(
                    pin, error.without_frames(), size_of_error(error), self._failure_time_to_live
                )
                raise

    async def _evict(self) -> None:
        listed = [(record.modified, record.key) async for record in self._records.scan(PACKAGES)]
        for _, key in sorted(listed)[:-_STORED]:
            await self._records.delete(PACKAGES, key)


def _read(content: bytes) -> Mapping[str, Details] | None:
    try:
        return LISTED.validate_json(content)
    except ValidationError:
        return None  # torn: overwritten
