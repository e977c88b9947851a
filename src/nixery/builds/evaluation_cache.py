"""Results of evaluating names in a state of the package source, shared by all images that use a name.

Clients can make names up faster than the server builds. So new results are in memory only, which evicts the
oldest ones, and a result gets a record only after the server built an image from it.

From a request to what is to be in its image.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from nixery.caching import CacheCounts, LRUCache
from nixery.closure import StorePath
from nixery.errors import InvalidName, PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.name import ImageRequest
from nixery.image.platform import Platform
from nixery.nix.packages import Contents, Definition, Evaluated, NixBuilder, Package
from nixery.oci.documents import canonical_json
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import KINDS, RecordStore

EVALUATIONS = "evaluations"

EVALUATED: TypeAdapter[Sequence[Evaluated]] = TypeAdapter(Sequence[Evaluated])

# Bytes of results in memory, encoded as in records.
_CAPACITY = 16 * 1024 * 1024


class EvaluationCache:
    """Results of evaluations: in memory, and in records that all servers on a storage share.

    Args:
        records: where they are stored.
        identity: of this program, whose expressions and parsers determine the results.

    Attributes:
        counts: of look-ups.
    """

    def __init__(self, records: RecordStore, identity: str) -> None:
        self._records = records
        self._identity = identity
        self.counts = CacheCounts()
        # Keyed as the records are.
        self._recent: LRUCache[str, Sequence[Evaluated]] = LRUCache(_CAPACITY)

    async def find(self, pin: Pin, platform: Platform, name: str) -> Sequence[Evaluated] | None:
        """Return what a name stands for, if that is known and still of use.

        Raises:
            StorageError: the store cannot be asked.
        """
        found = await self._known(pin, platform, name)
        if found is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return found

    async def _known(self, pin: Pin, platform: Platform, name: str) -> Sequence[Evaluated] | None:
        key = self._key(pin, platform, name)
        found = self._recent.get(key)
        if found is None:
            content = await self._records.get(EVALUATIONS, key)
            found = None if content is None else await asyncio.to_thread(_read, content)
        if found is None or not await asyncio.to_thread(_can_be_realised, found):
            return None
        return found

    def add(self, pin: Pin, platform: Platform, name: str, found: Sequence[Evaluated]) -> None:
        """Cache the result for a name in memory."""
        if not any(_may_pass(item) for item in found):
            self._recent.put(self._key(pin, platform, name), found, len(EVALUATED.dump_json(found)))

    async def keep(self, pin: Pin, platform: Platform, names: Iterable[str]) -> None:
        """Write the cached results for names of a built image, unless they are written already.

        Raises:
            StorageError: a record cannot be written.
        """
        for name in names:
            key = self._key(pin, platform, name)
            found = self._recent.get(key)
            content = await asyncio.to_thread(EVALUATED.dump_json, found) if found is not None else b""
            # A result larger than a record may be is evaluated again after a restart.
            if not 0 < len(content) <= KINDS[EVALUATIONS].largest or any(map(_is_unavailable, found or ())):
                continue
            if await self._records.get(EVALUATIONS, key) != content:
                await self._records.put(EVALUATIONS, key, content)

    def _key(self, pin: Pin, platform: Platform, name: str) -> str:
        parts = [self._identity, pin.source, pin.identity, platform.nix_system, name]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def _may_pass(item: Evaluated) -> bool:
    # An evaluation may fetch things, and so fail for once.
    return isinstance(item, UnavailablePackage) and item.reason is Reason.THROWS


def _is_unavailable(item: Evaluated) -> bool:
    return isinstance(item, UnavailablePackage)


def _read(content: bytes) -> Sequence[Evaluated] | None:
    """Read a record; ``None`` if it is torn, or has something other than store paths where those belong."""
    try:
        found = EVALUATED.validate_json(content)
        for item in found:
            for path in _store_paths(item):
                StorePath.parse(path)
    except ValueError:
        return None  # written anew
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
    """Whether the derivations are there; Nix's garbage collector takes them when it takes their outputs."""
    derivations = [str(item.derivation) for item in found if isinstance(item, Package)]
    for definition in found:
        if isinstance(definition, Definition):
            derivations += _derivations(definition)
    return all(map(os.path.lexists, derivations))


# Packages of an image, including those of lists and definitions. Their outputs have to fit into the arguments
# of one command.
_MOST_PACKAGES = 5000


class Evaluator:
    """Asks Nix for what nobody has asked before.

    Args:
        source: where the package set is.
        nix: evaluates.
        cache: what is known already; ``None`` where results depend on more than the package set.
    """

    def __init__(self, source: PackageSource, nix: NixBuilder, cache: EvaluationCache | None) -> None:
        self._source = source
        self._nix = nix
        self._cache = cache

    async def contents(self, request: ImageRequest, pin: Pin) -> Contents:
        """Find everything a request asks for.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            InvalidName: it asks for two image definitions.
            PackageSetChanged: there is no such state of the package set any more.
            BuildError: Nix cannot tell.
        """
        found = await self._evaluated(request, pin)
        flaws = [item for name in found for item in found[name] if isinstance(item, UnavailablePackage)]
        if flaws:
            raise PackagesUnavailable(tuple(_explained(flaw, request) for flaw in flaws))
        definitions = [item for name in found for item in found[name] if isinstance(item, Definition)]
        if len(definitions) > 1:
            names = " and ".join(definition.attribute for definition in definitions)
            raise InvalidName(
                "/".join(request.requested), f"{names} are image definitions; an image can have one"
            )
        packages = tuple(item for name in found for item in found[name] if isinstance(item, Package))
        if len(packages) > _MOST_PACKAGES:
            reason = f"it stands for {len(packages)} packages, and {_MOST_PACKAGES} is the limit"
            raise InvalidName("/".join(request.requested), reason)
        return Contents(packages, definitions[0] if definitions else None)

    async def keep(self, request: ImageRequest, pin: Pin) -> None:
        """Write the evaluation results of a built image to records, which survive a restart.

        Raises:
            StorageError: a record cannot be written.
        """
        if self._cache:
            await self._cache.keep(pin, request.platform, (*request.packages, *request.optional_packages))

    async def known(self, request: ImageRequest, pin: Pin) -> Sequence[Package]:
        """Return those packages of a request that are known without asking Nix.

        Raises:
            StorageError: the store cannot be asked.
        """
        found = [
            await self._known(request, pin, name) or ()
            for name in (*request.packages, *request.optional_packages)
        ]
        return [item for items in found for item in items if isinstance(item, Package)]

    async def confirm(self, pin: Pin) -> None:
        """Make sure that answers about a pin are still of use.

        Raises:
            PackageSetChanged: there is no such state of the package set any more.
            SourceUnreachable: nobody knows.
        """
        await self._source.confirm(pin)

    async def _evaluated(self, request: ImageRequest, pin: Pin) -> Mapping[str, Sequence[Evaluated]]:
        """By name, in the order of the request, whether or not it was known before."""
        names = (*request.packages, *request.optional_packages)
        known = {name: await self._known(request, pin, name) for name in names}
        unknown = [name for name in names if known[name] is None]
        evaluated: Mapping[str, Sequence[Evaluated]] = {}
        if unknown:
            wanted = [name for name in unknown if name in request.packages]
            optional = [name for name in unknown if name not in wanted]
            async with self._source.open(pin) as package_set:
                evaluated = await self._nix.evaluate(wanted, optional, request.platform, package_set)
            if self._cache:
                for name, items in evaluated.items():
                    self._cache.add(pin, request.platform, name, items)
        return {name: known[name] or evaluated.get(name, ()) for name in names}

    async def _known(self, request: ImageRequest, pin: Pin, name: str) -> Sequence[Evaluated] | None:
        known = await self._cache.find(pin, request.platform, name) if self._cache else None
        if known is None:
            return None
        if name in request.packages:
            # An optional name that is missing was not looked into any further.
            return known or None
        # Somebody may have asked for it by name and been told that it is missing; here it may be.
        return [item for item in known if not _is_missing(item)]


def _is_missing(item: Evaluated) -> bool:
    return isinstance(item, UnavailablePackage) and item.reason is Reason.MISSING


def _explained(flaw: UnavailablePackage, request: ImageRequest) -> UnavailablePackage:
    if flaw.reason is Reason.MISSING and flaw.name not in request.requested:
        return replace(flaw, explanation="part of every image with a shell")
    return flaw
