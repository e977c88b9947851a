"""Asking Nix for all names of a package set.

All names of a package set, to be completed while somebody types.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import re
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pydantic import TypeAdapter, ValidationError
from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.builds.coordinator import size_of
from nixery.builds.pins import Pins
from nixery.builds.slots import Slots
from nixery.caching import LRUCache, SingleFlight
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
from nixery.nix.packages import Details, NixBuilder
from nixery.oci.documents import canonical_json
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import RecordStore

# Each is an evaluation of a whole package set, which may take all the memory that one is given.
_AT_ONCE, _QUEUE = 1, 4

# Bytes of failures that are remembered.
_CAPACITY = 1024 * 1024


class PackageListing:
    """Lists package sets, one after the other.

    Args:
        source: where package sets are.
        nix: lists them.
        platform: whose packages are listed.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        source: PackageSource,
        nix: NixBuilder,
        platform: Platform,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.platform = platform
        self._source = source
        self._nix = nix
        self._failure_time_to_live = failure_time_to_live
        self._clock = clock
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LISTINGS)
        self._failures: LRUCache[Pin, tuple[BuildError, float]] = LRUCache(_CAPACITY)

    async def list(self, pin: Pin) -> Mapping[str, Details]:
        """Return what is known of each package by its attribute.

        Raises:
            BuildError: the package set cannot be had, or not be listed; now or a moment ago.
            TooBusy: too many others wait already.
        """
        error, until = self._failures.get(pin) or (None, 0.0)
        if error is not None and until > self._clock():
            raise error.without_frames()
        async with self._slots.slot():
            try:
                return await self._list(pin)
            except BuildError as failure:
                # Whoever types asks again with each key.
                until = self._clock() + self._failure_time_to_live
                self._failures.put(pin, (failure.without_frames(), until), size_of(failure))
                raise

    async def _list(self, pin: Pin) -> Mapping[str, Details]:
        async with self._source.open(pin) as package_set:
            try:
                return await self._nix.index(self.platform, package_set, details=True)
            except (AnswerTooLarge, NixTimedOut, EvaluationFailed, NixUnusable):
                # A large set cannot be looked into, nor can one with errors that nobody can catch. Names can be had of both.
                return await self._nix.index(self.platform, package_set, details=False)


PACKAGES = "packages"

# States of the source whose names are in memory; one of 60,000 packages takes some 25 MB.
_KEPT = 3

# And in the store, where they take some 7 MB each.
_STORED = 5

# More names than these are not sorted.
_MANY = 2000

# A search for similar names: least and greatest length of its text, and the least similarity (0 to 1).
# Longer texts take several times as long for each of maybe 100,000 names, and no user types them.
_FUZZY, _LONGEST_FUZZY, _SIMILAR = 3, 64, 0.6

LISTED: TypeAdapter[dict[str, Details]] = TypeAdapter(dict[str, Details])

# A name has to pass as one component of an image's name.
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedPackage:
    """A package that can be a part of an image's name."""

    name: str
    version: str
    description: str


class PackageNames:
    """The names of one state of a package set, sorted."""

    def __init__(self, details: Mapping[str, Details]) -> None:
        packages: dict[str, Details] = {}
        for attribute, told in sorted(details.items()):
            # As a request finds it: names are in lower case, and may begin with a digit where attributes cannot.
            name = attribute.lower()
            name = name[1:] if re.match(r"_[0-9]", name) else name
            if len(name) <= LONGEST_NAME and _COMPONENT.fullmatch(name):
                packages.setdefault(name, told)
        self._packages = packages
        self._names = sorted(packages)
        self._by_length = sorted(self._names, key=len)
        # One text is searched in a tenth of the time that all names take.
        self._text = "\n".join(["", *self._by_length, ""])

    def __len__(self) -> int:
        return len(self._names)

    def search(self, text: str, limit: int) -> Sequence[ListedPackage]:
        """Find names: those that begin with a text, the shortest first; then those that have it; or similar ones."""
        text = text.lower().strip()
        if not text.isprintable():
            return []
        first, last = bisect_left(self._names, text), bisect_left(self._names, text + "\x7f")
        if last - first > _MANY:
            # So many that enough of the short ones are soon found.
            begin = (name for name in self._by_length if name.startswith(text))
            return [self._listed(name) for name in islice(begin, limit)]
        found = heapq.nsmallest(limit, self._names[first:last], key=lambda name: (len(name), name))
        if len(found) < limit and text:
            within = (name for name in self._having(text) if not name.startswith(text))
            found += islice(within, limit - len(found))
        if not found and _FUZZY <= len(text) <= _LONGEST_FUZZY:
            # Hardly anybody mistypes the first letter, and looking at all names would take ten times as long.
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
        """Return what is known of a package; ``None`` if there is none."""
        return self._listed(name) if name in self._packages else None

    def _having(self, text: str) -> Iterator[str]:
        """Names with a text in them, the shortest first."""
        at = self._text.find(text)
        while at >= 0:
            end = self._text.find("\n", at)
            yield self._text[self._text.rfind("\n", 0, at) + 1 : end]
            at = self._text.find(text, end)

    def _listed(self, name: str) -> ListedPackage:
        told = self._packages[name]
        return ListedPackage(name, told.version, told.description)


class PackageIndex:
    """The names of each state of the package source that somebody asked about; listed once, and kept in the store.

    Args:
        pins: what tags stand for.
        listing: of what nobody has listed before.
        records: shared by all servers.
        identity: of this program, which lists them.
    """

    def __init__(
        self,
        pins: Pins,
        listing: PackageListing,
        records: RecordStore,
        identity: str,
    ) -> None:
        self._pins = pins
        self._listing = listing
        self._records = records
        self._identity = identity
        self._kept: OrderedDict[Pin, PackageNames] = OrderedDict()
        self._in_flight: SingleFlight[Pin, PackageNames] = SingleFlight()

    async def names(self, tag: str) -> PackageNames:
        """Return the names that a tag's package set has. If nobody has asked before, that takes seconds.

        Raises:
            TooBusy: too many others wait to be listed.
            NixeryError: the package set cannot be had, or not be listed.
        """
        pin = (await self._pins.pin(tag)).pin
        names = self._kept.get(pin) or await self._in_flight.run(pin, partial(self._load, pin))
        if pin in self._kept:
            self._kept.move_to_end(pin)
        return names

    async def close(self) -> None:
        """Stop listing."""
        await self._in_flight.close()

    async def _load(self, pin: Pin) -> PackageNames:
        parts = [self._identity, pin.source, pin.identity, self._listing.platform.nix_system]
        key = hashlib.sha256(canonical_json(parts)).hexdigest()
        content = await self._records.get(PACKAGES, key)
        details = await asyncio.to_thread(_read, content) if content is not None else None
        if details is None:
            details = await self._listing.list(pin)
            # A storage that is full keeps nobody from typing: it is listed again after a restart.
            with suppress(StorageError):
                await self._records.put(
                    PACKAGES, key, await asyncio.to_thread(LISTED.dump_json, dict(details))
                )
                await self._forget()
        names = self._kept[pin] = await asyncio.to_thread(PackageNames, details)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return names

    async def _forget(self) -> None:
        listed = [(record.modified, record.key) async for record in self._records.scan(PACKAGES)]
        for _, key in sorted(listed)[:-_STORED]:
            await self._records.delete(PACKAGES, key)


def _read(content: bytes) -> Mapping[str, Details] | None:
    try:
        return LISTED.validate_json(content)
    except ValidationError:
        return None  # torn: written anew
