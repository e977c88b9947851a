"""What names stand for in a state of the package source: evaluated once, whichever images they are part of."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from nixery.cache_counts import CacheCounts
from nixery.errors import Reason, UnavailablePackage
from nixery.image.platform import Platform
from nixery.nix.builder import Definition, Evaluated, Package
from nixery.oci.canonical_json import canonical_json
from nixery.sources.source import Pin
from nixery.storage.store import RecordStore

EVALUATIONS = "evaluations"

EVALUATED: TypeAdapter[Sequence[Evaluated]] = TypeAdapter(Sequence[Evaluated])


class EvaluationCache:
    """Results of evaluations in the store, shared by all servers.

    Args:
        records: where they are kept.
        identity: of this program, whose expressions and parsers make the results what they are.

    Attributes:
        counts: of the names that were asked for.
    """

    def __init__(self, records: RecordStore, identity: str) -> None:
        self._records = records
        self._identity = identity
        self.counts = CacheCounts()

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
        content = await self._records.get(EVALUATIONS, self._key(pin, platform, name))
        return None if content is None else await asyncio.to_thread(_usable, content)

    async def add(self, pin: Pin, platform: Platform, name: str, found: Sequence[Evaluated]) -> None:
        """Remember what a name stands for.

        Raises:
            StorageError: it cannot be written.
        """
        if not any(_may_pass(item) for item in found):
            content = await asyncio.to_thread(EVALUATED.dump_json, found)
            await self._records.put(EVALUATIONS, self._key(pin, platform, name), content)

    def _key(self, pin: Pin, platform: Platform, name: str) -> str:
        parts = [self._identity, pin.source, pin.identity, platform.nix_system, name]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def _may_pass(item: Evaluated) -> bool:
    # An evaluation may fetch things, and so fail for once.
    return isinstance(item, UnavailablePackage) and item.reason is Reason.THROWS


def _usable(content: bytes) -> Sequence[Evaluated] | None:
    try:
        found = EVALUATED.validate_json(content)
    except ValidationError:
        return None  # torn: written anew
    return found if _can_be_realised(found) else None


def _can_be_realised(found: Sequence[Evaluated]) -> bool:
    """Whether the derivations are there; Nix's garbage collector takes them when it takes their outputs."""
    derivations = [str(item.derivation) for item in found if isinstance(item, Package)]
    for definition in found:
        if isinstance(definition, Definition):
            derivations += [installable.partition("!")[0] for installable in definition.installables]
    return all(map(os.path.lexists, derivations))
