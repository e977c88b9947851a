"""What was found out about parts of a package set, so that who is interrupted need not begin anew."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from nixery.closure.store_path import StorePath
from nixery.image.platform import Platform
from nixery.oci.canonical_json import canonical_json
from nixery.sources.source import Pin
from nixery.storage.record_kinds import KINDS
from nixery.storage.store import RecordStore

BATCHES = "batches"
BATCH_CLOSURES = "batch-closures"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some names of a package set, evaluated.

    Attributes:
        derivations: absolute paths, sorted.
        installables: the outputs to install, in Nix's words; sorted.
        outputs: their paths, sorted.
        flaws: what cannot be evaluated, a line for each.
        others: what is something else than a package, likewise.
    """

    derivations: tuple[str, ...]
    installables: tuple[str, ...]
    outputs: tuple[str, ...]
    flaws: tuple[str, ...]
    others: tuple[str, ...]


# By base name of a store path: the names of what it refers to.
References = dict[str, list[str]]

BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)
REFERENCES: TypeAdapter[References] = TypeAdapter(References)


class BatchRecords:
    """Batches in the store.

    Args:
        records: where they are kept.
        identity: of this program and of Nix's options, which make the results what they are.
    """

    def __init__(self, records: RecordStore, identity: str) -> None:
        self._records = records
        self._identity = identity

    def key(self, pin: Pin, platform: Platform, names: Sequence[str]) -> str:
        """Tell what a batch is kept under."""
        document = [self._identity, pin.source, pin.identity, str(platform), *names]
        return hashlib.sha256(canonical_json(document)).hexdigest()

    async def batch(self, key: str) -> Batch | None:
        """Return what names stand for, if that is known and Nix has not collected it.

        Raises:
            StorageError: the store cannot be asked.
        """
        content = await self._records.get(BATCHES, key)
        try:
            found = BATCH.validate_json(content) if content is not None else None
            for path in (*found.derivations, *found.outputs, *_derivations(found)) if found else ():
                StorePath.parse(path)
        except ValueError:
            return None  # torn, or not a list of paths: rewritten
        if found is None or not await asyncio.to_thread(_is_there, found):
            return None
        return found

    async def keep_batch(self, key: str, batch: Batch) -> None:
        """Record a batch, unless it is larger than a record may be.

        Raises:
            StorageError: it cannot be written.
        """
        await self._keep(BATCHES, key, BATCH.dump_json(batch))

    async def references(self, key: str) -> References | None:
        """Return the references within the closure of a batch, if they are known.

        Raises:
            StorageError: the store cannot be asked.
        """
        content = await self._records.get(BATCH_CLOSURES, key)
        try:
            return REFERENCES.validate_json(content) if content is not None else None
        except ValidationError:
            return None

    async def keep_references(self, key: str, references: References) -> None:
        """Record them, unless they are larger than a record may be.

        Raises:
            StorageError: they cannot be written.
        """
        await self._keep(BATCH_CLOSURES, key, REFERENCES.dump_json(references))

    async def _keep(self, kind: str, key: str, content: bytes) -> None:
        if len(content) <= KINDS[kind].largest:
            await self._records.put(kind, key, content)


def _derivations(batch: Batch) -> list[str]:
    return [installable.partition("!")[0] for installable in batch.installables]


def _is_there(batch: Batch) -> bool:
    return all(map(os.path.lexists, batch.derivations))
