"""Results of evaluating names in a state of the package source, shared by all images that use a name.

Clients can make names up faster than the server builds. So new results are in memory only, which evicts the
oldest ones, and a result gets a record only after the server built an image from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter

from nixery.cache_counts import CacheCounts
from nixery.closure.store_path import StorePath
from nixery.errors import Reason, UnavailablePackage
from nixery.image.platform import Platform
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.nix.builder import Definition, Evaluated, Package
from nixery.oci.canonical_json import canonical_json
from nixery.sources.source import Pin
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import RecordStore

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
        self._recent: LeastRecentlyUsed[str, Sequence[Evaluated]] = LeastRecentlyUsed(_CAPACITY)

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
