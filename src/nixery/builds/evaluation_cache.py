"""Evaluations: what the names of a request stand for in a state of the package source, asked once and cached.

Clients can make names up faster than the server builds. So new results are in memory only, which evicts the
oldest ones, and a result gets a record only after the server built an image from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from nixery.caching import CacheCounts, LRUCache
from nixery.closure import StorePath
from nixery.errors import InvalidName, PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.name import ImageRequest
from nixery.image.platform import Platform
from nixery.nix.packages import Contents, Definition, Evaluated, Package
from nixery.nix.realisation import Nix
from nixery.oci.documents import canonical_json
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import EVALUATIONS, KINDS, RecordStore

EVALUATED: TypeAdapter[Sequence[Evaluated]] = TypeAdapter(Sequence[Evaluated])

# Bytes of results in memory, encoded as in records.
_CAPACITY = 16 * 1024 * 1024

# Packages of an image, including those of lists and definitions. Their outputs have to fit into the arguments
# of one command.
_MOST_PACKAGES = 5000


class Evaluator:
    """Finds the contents of images: from the cache, or by one evaluation of all names that it does not have.

    Args:
        source: provides package sets.
        nix: evaluates.
        cache: of results; ``None`` if they depend on more than the package set.

    Attributes:
        source: as above.
    """

    def __init__(self, source: PackageSource, nix: Nix, cache: EvaluationCache | None) -> None:
        self.source = source
        self._nix = nix
        self._cache = cache

    async def contents(self, request: ImageRequest, pin: Pin) -> Contents:
        """Evaluate everything that a request asks for.

        Raises:
            PackagesUnavailable: with every unavailable package.
            InvalidName: it asks for two image definitions, or for too many packages.
            PackageSetChanged: that state of the package set no longer exists.
            BuildError: Nix cannot evaluate.
        """
        names = _names(request)
        found = {name: await self._find(request, pin, name) for name in names}
        unknown = [name for name in names if found[name] is None]
        if unknown:
            wanted = [name for name in unknown if name in request.packages]
            optional = [name for name in unknown if name not in wanted]
            async with self.source.open(pin) as package_set:
                evaluated = await self._nix.evaluate(wanted, optional, request.platform, package_set)
            if self._cache:
                for name, items in evaluated.items():
                    self._cache.add(pin, request.platform, name, items)
            found.update((name, evaluated.get(name, ())) for name in unknown)
        return _contents(request, [item for items in found.values() for item in items or ()])

    async def keep(self, request: ImageRequest, pin: Pin) -> None:
        """Store the results of a built image, so that they survive a restart.

        Raises:
            StorageError: a record cannot be written.
        """
        if self._cache:
            await self._cache.keep(pin, request.platform, _names(request))

    async def known(self, request: ImageRequest, pin: Pin) -> Sequence[Package]:
        """Return those packages of a request that are in the cache.

        Raises:
            StorageError: the storage cannot be read.
        """
        found = [await self._find(request, pin, name) or () for name in _names(request)]
        return [item for items in found for item in items if isinstance(item, Package)]

    async def _find(self, request: ImageRequest, pin: Pin, name: str) -> Sequence[Evaluated] | None:
        cached = await self._cache.find(pin, request.platform, name) if self._cache else None
        if cached is None:
            return None
        if name in request.packages:
            # The cached result of a missing optional name is empty; a required name needs the reason.
            return cached or None
        # A client may have required the name and got the answer that it is missing; here it may be.
        return [item for item in cached if not _is_missing(item)]


class EvaluationCache:
    """Results of evaluations: in memory, and in records that all servers on a storage share.

    Args:
        records: of results.
        identity: of this program, whose expressions and parsers determine the results.

    Attributes:
        counts: of look-ups.
    """

    def __init__(self, records: RecordStore, identity: str) -> None:
        self._records = records
        self._identity = identity
        self.counts = CacheCounts()
        # With the keys of the records.
        self._recent: LRUCache[str, Sequence[Evaluated]] = LRUCache(_CAPACITY)

    async def find(self, pin: Pin, platform: Platform, name: str) -> Sequence[Evaluated] | None:
        """Return the result for a name; ``None`` if there is none whose derivations still exist.

        Raises:
            StorageError: the storage cannot be read.
        """
        key = self._key(pin, platform, name)
        found = self._recent.get(key)
        if found is None:
            content = await self._records.get(EVALUATIONS, key)
            found = None if content is None else await asyncio.to_thread(_read, content)
        if found is not None and await asyncio.to_thread(_can_be_realised, found):
            self.counts.hits += 1
            return found
        self.counts.misses += 1
        return None

    def add(self, pin: Pin, platform: Platform, name: str, found: Sequence[Evaluated]) -> None:
        """Cache the result for a name in memory."""
        if not any(_is_transient(item) for item in found):
            self._recent.put(self._key(pin, platform, name), found, len(EVALUATED.dump_json(found)))

    async def keep(self, pin: Pin, platform: Platform, names: Iterable[str]) -> None:
        """Write the cached results for names of a built image, unless they are written already.

        Raises:
            StorageError: a record cannot be written.
        """
        for name in names:
            key = self._key(pin, platform, name)
            found = self._recent.get(key)
            if found is None or any(isinstance(item, UnavailablePackage) for item in found):
                continue
            content = await asyncio.to_thread(EVALUATED.dump_json, found)
            # A result larger than a record may be is evaluated again after a restart.
            if len(content) <= KINDS[EVALUATIONS].largest and (
                await self._records.get(EVALUATIONS, key) != content
            ):
                await self._records.put(EVALUATIONS, key, content)

    def _key(self, pin: Pin, platform: Platform, name: str) -> str:
        parts = [self._identity, pin.source, pin.identity, platform.nix_system, name]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def _names(request: ImageRequest) -> Sequence[str]:
    return (*request.packages, *request.optional_packages)


def _contents(request: ImageRequest, items: Sequence[Evaluated]) -> Contents:
    name = "/".join(request.requested)
    unavailable = [item for item in items if isinstance(item, UnavailablePackage)]
    if unavailable:
        raise PackagesUnavailable(tuple(_explained(item, request) for item in unavailable))
    definitions = [item for item in items if isinstance(item, Definition)]
    if len(definitions) > 1:
        attributes = " and ".join(definition.attribute for definition in definitions)
        raise InvalidName(name, f"{attributes} are image definitions; an image can have one")
    packages = tuple(item for item in items if isinstance(item, Package))
    if len(packages) > _MOST_PACKAGES:
        raise InvalidName(name, f"it stands for {len(packages)} packages, and {_MOST_PACKAGES} is the limit")
    return Contents(packages, definitions[0] if definitions else None)


def _explained(item: UnavailablePackage, request: ImageRequest) -> UnavailablePackage:
    if _is_missing(item) and item.name not in request.requested:
        return replace(item, explanation="part of every image with a shell")
    return item


def _is_missing(item: Evaluated) -> bool:
    return isinstance(item, UnavailablePackage) and item.reason is Reason.MISSING


def _is_transient(item: Evaluated) -> bool:
    # An evaluation may fetch something, and so fail for once.
    return isinstance(item, UnavailablePackage) and item.reason is Reason.THROWS


def _read(content: bytes) -> Sequence[Evaluated] | None:
    """Read a record; ``None`` if it is torn, or has something other than store paths where those belong."""
    try:
        found = EVALUATED.validate_json(content)
        for item in found:
            for path in _store_paths(item):
                StorePath.parse(path)
    except ValueError:
        return None  # overwritten by the next build
    return found


def _store_paths(item: Evaluated) -> list[str]:
    """All paths that this result passes to Nix, or to code that reads the store."""
    match item:
        case Package():
            return [str(item.derivation), *map(str, item.outputs.values())]
        case Definition():
            return [*_derivations(item), *map(str, item.store_paths)]
        case UnavailablePackage():
            return []


def _derivations(definition: Definition) -> list[str]:
    return [installable.partition("!")[0] for installable in definition.installables]


def _can_be_realised(found: Sequence[Evaluated]) -> bool:
    """Whether the derivations exist; Nix's garbage collector deletes them together with their outputs."""
    derivations = [str(item.derivation) for item in found if isinstance(item, Package)]
    for definition in found:
        if isinstance(definition, Definition):
            derivations += _derivations(definition)
    return all(map(os.path.lexists, derivations))
