"""Layers in the storage: each of them is packed once on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from nixery.builds.events import LayerPacked, LayerReused, Observe
from nixery.caching import SingleFlight
from nixery.closure import Closure
from nixery.errors import InvalidDigest, ShuttingDown, StorageError
from nixery.layering.grouping import LayerGroup
from nixery.locks import FileLocks
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, Layer
from nixery.packing.contents import StoreContents, add_store_paths
from nixery.packing.packer import AddContents, LayerPacker
from nixery.packing.root_filesystem import Entry, RootFilesystem, add_entries
from nixery.storage.blobs import BlobStore
from nixery.storage.records import LAYERS, RecordStore

# Seconds between checks whether another process has finished packing a layer.
_POLL = 0.1


class _Abandoned(Exception):
    """No build waits for the layer any more."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How layers are packed.

    Attributes:
        packer: packs them.
        workers: the most that are packed at the same time.
        locks: one for each layer, shared by all processes on this machine.
    """

    packer: LayerPacker
    workers: int
    locks: FileLocks


class LayerRecord(BaseModel):
    """A packed layer, by its identity."""

    digest: str
    size: int
    diff_id: str


class LayerPublisher:
    """Finds or packs layers, each of them once on this machine.

    A layer's identity depends on its contents and on how it is packed, never on where or when: the NAR hashes
    of its store paths, and the packer's own identity.
    """

    def __init__(self, blobs: BlobStore, records: RecordStore, packing: Packing) -> None:
        self._blobs = blobs
        self._records = records
        self._packer = packing.packer
        self._locks = packing.locks
        self._executor = ThreadPoolExecutor(packing.workers, thread_name_prefix="packing")
        # Taken before the lock of a layer, which is an open file, so that no more locks than threads are
        # held.
        self._workers = asyncio.Semaphore(packing.workers)
        self._wanted: Counter[str] = Counter()
        self._in_flight: SingleFlight[str, Layer] = SingleFlight()
        # Threads that pack layers, by the identity of the layer.
        self._threads: dict[str, asyncio.Future[Layer]] = {}
        self._stop = threading.Event()

    async def publish(
        self, groups: Sequence[LayerGroup], closure: Closure, contents: StoreContents, observe: Observe
    ) -> list[Layer]:
        """Publish layers of store paths, several at once; the result is in the order of the groups.

        Contents of a known layer are not read. When this returns or raises, even if cancelled, no thread reads the store paths for this caller any
        more, so that the caller may release them.
        """
        tasks = (self._publish_group(group, closure, contents, observe) for group in groups)
        published = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in published:
            if isinstance(failure, BaseException):
                raise failure
        return [layer for layer in published if isinstance(layer, Layer)]

    async def publish_root(self, root: RootFilesystem, packages: Sequence[str], observe: Observe) -> Layer:
        """Publish the layer with the root file system."""
        entries, identity = await asyncio.to_thread(self._planned, root)
        return await self._publish(identity, lambda archive: add_entries(archive, entries), packages, observe)

    def _planned(self, root: RootFilesystem) -> tuple[list[Entry], str]:
        # Off the event loop: packages may have hundreds of thousands of names.
        entries = list(root.entries())
        return entries, self._identity(map(repr, entries))

    def _identity(self, parts: Iterable[str]) -> str:
        # No part can contain a line break, so it can separate them. They are hashed one by one: together, the
        # names of a root file system would take four times their bytes.
        digest = hashlib.sha256(self._packer.identity.encode())
        for part in parts:
            digest.update(b"\n" + part.encode())
        return digest.hexdigest()

    async def close(self) -> None:
        """Abort packing; it leaves nothing behind."""
        self._stop.set()
        await self._in_flight.close()
        # Each thread checks for the stop before it reads the next piece of a file.
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    async def _publish_group(
        self, group: LayerGroup, closure: Closure, contents: StoreContents, observe: Observe
    ) -> Layer:
        infos = [closure[path] for path in group.paths]
        identity = self._identity(f"{info.path} {info.nar_hash}" for info in infos)
        names = sorted({path.name for path in group.paths})
        return await self._publish(
            identity, lambda archive: add_store_paths(archive, infos, contents), names, observe
        )

    async def _publish(
        self,
        identity: str,
        contents: AddContents,
        packages: Sequence[str],
        observe: Observe,
    ) -> Layer:
        async def find_or_pack() -> Layer:
            while True:
                self._require_wanted(identity)
                layer = await self._find(identity)
                if layer is not None:
                    observe(LayerReused(layer))
                    return layer
                async with self._workers:
                    layer = await self._pack_alone(identity, contents, observe)
                if layer is not None:
                    return layer
                # Another process packs it. If that process is killed, its lock is free, and there is no
                # layer.
                await asyncio.sleep(_POLL)

        self._wanted[identity] += 1
        try:
            layer = await self._wait_for(identity, find_or_pack)
        finally:
            self._wanted[identity] -= 1
            if not self._wanted[identity]:
                del self._wanted[identity]
                if identity in self._threads:
                    # Before the next piece, the thread checks whether a build still wants the layer.
                    await _finish_despite_cancellation(asyncio.wait({self._threads[identity]}))
        # The same content may belong to packages of different names; each image keeps its own names.
        return replace(layer, packages=tuple(packages))

    async def _wait_for(self, identity: str, find_or_pack: Callable[[], Coroutine[Any, Any, Layer]]) -> Layer:
        while True:
            try:
                return await self._in_flight.run(identity, find_or_pack)
            except _Abandoned:
                continue  # earlier callers cancelled it, but this one still needs the layer

    async def _pack_alone(self, identity: str, contents: AddContents, observe: Observe) -> Layer | None:
        """Pack a layer, or find it; ``None`` if another process is packing it."""
        with self._locks.attempt(identity) as is_ours:
            if not is_ours:
                return None
            layer = await self._find(identity)
            if layer is not None:
                observe(LayerReused(layer))
                return layer
            layer = await self._pack(identity, contents)
        observe(LayerPacked(layer))
        return layer

    async def _find(self, identity: str) -> Layer | None:
        content = await self._records.get(LAYERS, identity)
        if content is None:
            return None
        try:
            record = LayerRecord.model_validate_json(content)
            layer = self._layer(Digest.parse(record.digest), record.size, Digest.parse(record.diff_id))
        except (ValidationError, InvalidDigest):
            return None  # torn, or of another version: packing overwrites it
        # Renewed before the check, so that a collector sees that it is about to be used. A full or read-only
        # storage deletes nothing, and can still serve the layer.
        with suppress(StorageError):
            await self._records.renew(LAYERS, identity, content)
        blob = await self._blobs.find(layer.descriptor.digest)
        # The record only says that the layer was stored once: its blob may be lost, or truncated.
        return layer if blob is not None and blob.size == layer.descriptor.size else None

    async def _pack(self, identity: str, contents: AddContents) -> Layer:
        # From here on the thread reads store paths, which the waiting build protects from deletion.
        self._require_wanted(identity)
        check = partial(self._require_wanted, identity)
        thread = asyncio.get_running_loop().run_in_executor(
            self._executor, self._pack_blocking, contents, check
        )
        self._threads[identity] = thread
        try:
            layer = await thread
        finally:
            del self._threads[identity]
        record = LayerRecord(
            digest=str(layer.descriptor.digest), size=layer.descriptor.size, diff_id=str(layer.diff_id)
        )
        await self._records.put(LAYERS, identity, record.model_dump_json().encode())
        return layer

    def _require_wanted(self, identity: str) -> None:
        if self._stop.is_set():
            raise ShuttingDown
        if identity not in self._wanted:
            raise _Abandoned

    def _pack_blocking(self, contents: AddContents, check: Callable[[], None]) -> Layer:
        with self._blobs.create() as writer:
            diff_id = self._packer.pack(contents, writer, check)
            blob = writer.commit()
        return self._layer(blob.digest, blob.size, diff_id)

    def _layer(self, digest: Digest, size: int, diff_id: Digest) -> Layer:
        return Layer(Descriptor(self._packer.media_type, digest, size), diff_id, packages=())


async def _finish_despite_cancellation(work: Awaitable[object]) -> None:
    """Wait for some work even if the caller is cancelled; raise the cancellation once the work is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
