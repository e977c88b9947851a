"""References across a package set: the popularity data for ``NIX_POPULARITY_URL``.

Results are stored for each batch of names, so that an interrupted run resumes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from nixery.builds.pins import Pins
from nixery.closure import StorePath
from nixery.errors import Reason, UnavailablePackage
from nixery.image.platform import Platform
from nixery.nix.packages import Contents, EvaluatedItem, Package
from nixery.nix.realisation import Nix
from nixery.oci.documents import canonical_json
from nixery.sources.source import PackageSource, Pin
from nixery.storage.records import BATCH_CLOSURES, BATCHES, KINDS, RecordStore

# Seconds for the evaluation of a batch, at least.
BATCH_TIMEOUT = 600.0

# Names that one process evaluates: what they have in common is evaluated once, and its memory is bounded.
_NAMES = 2000

# Bytes of these names, which are one argument of a command: Linux allows 128 KiB.
_BYTES = 100_000

# Derivations that are named as examples.
_EXAMPLES = 3

Part = TypeVar("Part")
Result = TypeVar("Result")

# By base name of a store path: the names of its references.
References = dict[str, list[str]]


class Basis(StrEnum):
    """The references that are counted."""

    AUTO = "auto"
    CLOSURES = "closures"
    DERIVATIONS = "derivations"


class Watcher(Protocol):
    """Shows progress."""

    def begin(self, what: str, total: int) -> None:
        """Start a step with that many packages."""

    def advance(self, count: int) -> None:
        """Count more packages of the step as done."""

    def note(self, line: str) -> None:
        """Show a message."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some names of a package set, evaluated.

    Attributes:
        derivations: absolute paths, sorted.
        installables: the outputs to install, in Nix's syntax; sorted.
        outputs: their paths, sorted.
        flaws: names that cannot be evaluated, a line each.
        others: names that are not packages, likewise.
    """

    derivations: tuple[str, ...]
    installables: tuple[str, ...]
    outputs: tuple[str, ...]
    flaws: tuple[str, ...]
    others: tuple[str, ...]


BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)
REFERENCES: TypeAdapter[References] = TypeAdapter(References)


class BatchRecords:
    """The stored results of batches.

    Args:
        records: of results.
        identity: of this program and of Nix's options, which determine the results.
    """

    def __init__(self, records: RecordStore, identity: str) -> None:
        self._records = records
        self._identity = identity

    def key(self, pin: Pin, platform: Platform, names: Sequence[str]) -> str:
        """Return the key of a batch."""
        document = [self._identity, pin.source, pin.identity, str(platform), *names]
        return hashlib.sha256(canonical_json(document)).hexdigest()

    async def batch(self, key: str) -> Batch | None:
        """Return a batch; ``None`` if there is none whose derivations still exist.

        Raises:
            StorageError: the storage cannot be read.
        """
        content = await self._records.get(BATCHES, key)
        try:
            found = BATCH.validate_json(content) if content is not None else None
            for path in (*found.derivations, *found.outputs, *_derivations(found)) if found else ():
                StorePath.parse(path)
        except ValueError:
            return None  # torn, or other than store paths: overwritten
        if found is None or not await asyncio.to_thread(_exists, found):
            return None
        return found

    async def keep_batch(self, key: str, batch: Batch) -> None:
        """Record a batch, unless it is larger than a record may be.

        Raises:
            StorageError: it cannot be written.
        """
        await self._keep(BATCHES, key, BATCH.dump_json(batch))

    async def references(self, key: str) -> References | None:
        """Return the references within the closure of a batch; ``None`` if there is no record of them.

        Raises:
            StorageError: the storage cannot be read.
        """
        content = await self._records.get(BATCH_CLOSURES, key)
        try:
            return REFERENCES.validate_json(content) if content is not None else None
        except ValidationError:
            return None

    async def keep_references(self, key: str, references: References) -> None:
        """Record references, unless they are larger than a record may be.

        Raises:
            StorageError: they cannot be written.
        """
        await self._keep(BATCH_CLOSURES, key, REFERENCES.dump_json(references))

    async def _keep(self, kind: str, key: str, content: bytes) -> None:
        if len(content) <= KINDS[kind].largest:
            await self._records.put(kind, key, content)


def _derivations(batch: Batch) -> list[str]:
    return [installable.partition("!")[0] for installable in batch.installables]


def _exists(batch: Batch) -> bool:
    return all(map(os.path.lexists, batch.derivations))


class ReferenceCounting:
    """Counts references.

    Args:
        pins: of tags.
        source: provides the package set.
        nix: evaluates, and lists references.
        records: of earlier results.
        parallel: concurrent processes of Nix; no influence on the result.
    """

    def __init__(
        self, pins: Pins, source: PackageSource, nix: Nix, records: BatchRecords, parallel: int
    ) -> None:
        self._pins = pins
        self._source = source
        self._nix = nix
        self._records = records
        self._parallel = parallel

    async def count(
        self, names: Sequence[str] | None, tag: str, platform: Platform, basis: Basis, watcher: Watcher
    ) -> dict[str, int] | None:
        """Count how many store paths refer to each name.

        Args:
            names: of packages; ``None`` for the whole set.
            tag: of the package source.
            platform: what the packages are for.
            basis: the references to count.
            watcher: shows progress, and the names that are left out.

        Returns:
            Counts by name with version, sorted; ``None`` if no package evaluates.

        Raises:
            BuildError: Nix cannot evaluate or build.
            StorageError: a result cannot be stored.
        """
        pin = (await self._pins.pin(tag)).pin
        async with self._source.open(pin) as package_set:
            wanted = await self._nix.names(platform, package_set) if names is None else names
            parts = batches(sorted(set(wanted)))
            watcher.begin("evaluating", sum(map(len, parts)))

            async def evaluate(part: Sequence[str]) -> tuple[str, Batch]:
                key = self._records.key(pin, platform, part)
                batch = await self._records.batch(key)
                if batch is None:
                    found = await self._nix.evaluate(part, (), platform, package_set)
                    batch = _batch([item for items in found.values() for item in items])
                    await self._records.keep_batch(key, batch)
                watcher.advance(len(part))
                return key, batch

            found = await self._all(evaluate, parts)
            _report_left_out(found, watcher, every=names is not None)
            found = [(key, batch) for key, batch in found if batch.derivations]
            if not found:
                return None
            if basis is Basis.AUTO:
                basis = await self._basis(found, watcher)
            counts = await (
                self._count_in_closures(found, watcher)
                if basis is Basis.CLOSURES
                else self._count_in_derivations(found, watcher)
            )
        return dict(sorted(counts.items()))

    async def _basis(self, found: Sequence[tuple[str, Batch]], watcher: Watcher) -> Basis:
        for _, batch in found:
            missing = (await self._nix.plan(batch.installables)).builds
            if missing:
                examples = ", ".join(path.name.removesuffix(".drv") for path in missing[:_EXAMPLES])
                watcher.note(
                    f"some packages would have to be built ({examples}, ...): "
                    "counting references from derivations to their inputs, not references within closures"
                )
                return Basis.DERIVATIONS
        watcher.note("all packages are built or can be substituted: counting references within closures")
        return Basis.CLOSURES

    async def _count_in_derivations(
        self, found: Sequence[tuple[str, Batch]], watcher: Watcher
    ) -> Counter[str]:
        derivations = {path for _, batch in found for path in batch.derivations}
        watcher.begin("counting inputs", len(derivations))
        counts: Counter[str] = Counter()
        async for _, names in self._nix.inputs(derivations):
            counts.update(set(names))
        watcher.advance(len(derivations))
        return counts

    async def _count_in_closures(self, found: Sequence[tuple[str, Batch]], watcher: Watcher) -> Counter[str]:
        counts: Counter[str] = Counter()
        seen: set[str] = set()
        watcher.begin("realising", sum(len(batch.derivations) for _, batch in found))

        async def realise(part: tuple[str, Batch]) -> None:
            key, batch = part
            references = await self._records.references(key)
            if references is None:
                references = await self._references(batch)
                await self._records.keep_references(key, references)
            # Batches share paths, and only the first one counts them; the sum is the same.
            for path, names in references.items():
                if path not in seen:
                    seen.add(path)
                    counts.update(set(names))
            watcher.advance(len(batch.derivations))

        await self._all(realise, found)
        return counts

    async def _references(self, batch: Batch) -> References:
        async with self._nix.realise(batch.installables):
            closure = await self._nix.closure([StorePath.parse(path) for path in batch.outputs])
        return {info.path.base_name: [path.name for path in info.references] for info in closure}

    async def _all(self, work: Callable[[Part], Awaitable[Result]], parts: Sequence[Part]) -> list[Result]:
        """Do some work for all parts, several at a time; the first error cancels the rest."""
        free = asyncio.Semaphore(self._parallel)

        async def one(part: Part) -> Result:
            async with free:
                return await work(part)

        tasks = [asyncio.ensure_future(one(part)) for part in parts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def batches(names: Sequence[str]) -> list[Sequence[str]]:
    """Split names into parts for one evaluation each."""
    parts: list[Sequence[str]] = []
    part: list[str] = []
    size = 0
    for name in names:
        # In JSON, with a comma and a space.
        length = len(json.dumps(name)) + 2
        if part and (len(part) == _NAMES or size + length > _BYTES):
            parts.append(part)
            part, size = [], 0
        part.append(name)
        size += length
    return [*parts, part] if part else parts


def _batch(items: Sequence[EvaluatedItem]) -> Batch:
    packages = tuple(item for item in items if isinstance(item, Package))
    unavailable = [item for item in items if isinstance(item, UnavailablePackage)]
    contents = Contents(packages)
    return Batch(
        tuple(sorted({str(package.derivation) for package in packages})),
        tuple(contents.installables),
        tuple(map(str, contents.store_paths)),
        tuple(str(item) for item in unavailable if item.reason is not Reason.NOT_A_PACKAGE),
        tuple(str(item) for item in unavailable if item.reason is Reason.NOT_A_PACKAGE),
    )


def _report_left_out(found: Sequence[tuple[str, Batch]], watcher: Watcher, *, every: bool) -> None:
    for _, batch in found:
        for flaw in (*batch.flaws, *(batch.others if every else ())):
            watcher.note(f"left out: {flaw}")
    others = sum(len(batch.others) for _, batch in found)
    if others and not every:
        watcher.note(f"left out: {others} attributes that are not packages")
