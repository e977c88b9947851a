"""The cache of evaluations: what a name stands for in a state of the package source.

Clients can make names up faster than the server builds. So new results are in memory only, which evicts the
oldest ones, and a result gets a record only after the server built an image from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter

from nixery.caching import CacheCounts, LRUCache
from nixery.errors import Reason, UnavailablePackage
from nixery.image.platform import Platform
from nixery.nix.evaluation import require_valid
from nixery.nix.packages import Definition, EvaluatedItem, Package
from nixery.oci.documents import canonical_json
from nixery.sources.source import Pin
from nixery.storage.records import EVALUATIONS, KINDS, CheckedList, RecordStore

EVALUATED: TypeAdapter[list[EvaluatedItem]] = TypeAdapter(CheckedList[EvaluatedItem])

# Bytes of results in memory, encoded as in records.
_CAPACITY = 16 * 1024 * 1024


class EvaluationCache:
    """Results of evaluations: in memory, and in records that all servers on a storage share.

    Args:
        records: of results; ``None`` to keep them in memory only.
        identity: of this program, whose expressions and parsers determine the results.

    Attributes:
        counts: of look-ups.
    """

    def __init__(self, records: RecordStore | None, identity: str) -> None:
        self._records = records
        self._identity = identity
        self.counts = CacheCounts()
        # With the keys of the records.
        self._recent: LRUCache[str, Sequence[EvaluatedItem]] = LRUCache(_CAPACITY)

    async def find(self, pin: Pin, platform: Platform, name: str) -> Sequence[EvaluatedItem] | None:
        """Return the result for a name; ``None`` if there is none whose derivations still exist.

        Raises:
            StorageError: the storage cannot be read.
        """
        key = self._key(pin, platform, name)
        found = self._recent.get(key)
        if found is None:
            content = await self._records.get(EVALUATIONS, key) if self._records else None
            found = None if content is None else await asyncio.to_thread(_read, content)
        if found is not None and await asyncio.to_thread(_can_be_realised, found):
            self.counts.hits += 1
            return found
        self.counts.misses += 1
        return None

    def add(self, pin: Pin, platform: Platform, name: str, found: Sequence[EvaluatedItem]) -> None:
        """Cache the result for a name in memory."""
        if not any(_is_transient(item) for item in found):
            self._recent.put(self._key(pin, platform, name), found, len(EVALUATED.dump_json(list(found))))

    async def keep(self, pin: Pin, platform: Platform, names: Iterable[str]) -> None:
        """Write the cached results for names of a built image, unless they are written already.

        Raises:
            StorageError: a record cannot be written.
        """
        await asyncio.gather(*(self._keep(self._key(pin, platform, name)) for name in names))

    async def _keep(self, key: str) -> None:
        found = self._recent.get(key)
        if (
            self._records is None
            or found is None
            or any(isinstance(item, UnavailablePackage) for item in found)
        ):
            return
        content = await asyncio.to_thread(EVALUATED.dump_json, list(found))
        # A result larger than a record may be is evaluated again after a restart.
        if len(content) <= KINDS[EVALUATIONS].largest and (
            await self._records.get(EVALUATIONS, key) != content
        ):
            await self._records.put(EVALUATIONS, key, content)

    def _key(self, pin: Pin, platform: Platform, name: str) -> str:
        parts = [self._identity, pin.source, pin.identity, platform.nix_system, name]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def _is_transient(item: EvaluatedItem) -> bool:
    # An evaluation may fetch something, and so fail for once.
    return isinstance(item, UnavailablePackage) and item.reason is Reason.THROWS


def _read(content: bytes) -> Sequence[EvaluatedItem] | None:
    """Read a record; ``None`` if it is torn, or has what no evaluation returns."""
    try:
        found = EVALUATED.validate_json(content)
        for item in found:
            if isinstance(item, UnavailablePackage):
                return None  # a record has none, and another program's explanation may have megabytes
            if isinstance(item, Package) and item.is_realised:
                return None  # only the package index says that, and a build tries it once
            require_valid(item)
    except ValueError:
        return None  # overwritten by the next build
    return found


def _derivations(definition: Definition) -> list[str]:
    return [installable.partition("!")[0] for installable in definition.installables]


def _can_be_realised(found: Sequence[EvaluatedItem]) -> bool:
    """Whether the derivations exist; Nix's garbage collector deletes them together with their outputs."""
    derivations = [str(item.derivation) for item in found if isinstance(item, Package)]
    for definition in found:
        if isinstance(definition, Definition):
            derivations += _derivations(definition)
    return all(map(os.path.lexists, derivations))
