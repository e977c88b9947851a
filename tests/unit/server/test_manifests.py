"""Manifests by digest, from a storage that takes its time."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import pytest

from nixery.errors import ManifestUnknown
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.http import Request
from nixery.server.registry.manifests import Manifests
from nixery.storage.store import StoredBlob


class Layers:
    """A ``BlobStore`` that holds layers only, each of which is read when the test says so."""

    def __init__(self) -> None:
        self.reading: list[Digest] = []
        self.most = 0
        self.may_end = asyncio.Semaphore(0)

    async def find(self, digest: Digest) -> StoredBlob:
        return StoredBlob(digest, 4_000_000)

    async def read(self, blob: StoredBlob) -> bytes:
        self.reading.append(blob.digest)
        self.most = max(self.most, len(self.reading))
        await self.may_end.acquire()
        self.reading.remove(blob.digest)
        return b"\x1f\x8b"


class Unused:
    def note(self, _: object) -> bool:
        return False


async def test_layers_that_one_client_asks_for_as_manifests_are_read_in_turns() -> None:
    layers = Layers()
    manifests = Manifests(None, layers, Unused(), None, [AMD64])  # type: ignore[arg-type]
    request = Request("GET", "/v2/hello/manifests/")

    def ask(address: str, digest: Digest) -> asyncio.Task[object]:
        async def get() -> object:
            enter_request(RequestContext("id", Client(address)))
            return await manifests.get(request, "hello", str(digest))

        return copy_context().run(asyncio.ensure_future, get())

    theirs = [ask("192.0.2.1", Digest(f"{number:064x}")) for number in range(300)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(layers.reading) < 50
    other = Digest("f" * 64)
    asked = ask("192.0.2.2", other)
    layers.may_end.release()
    for _ in range(5):
        await asyncio.sleep(0)
    assert other in layers.reading, "the other client is next"
    for _ in range(301):
        layers.may_end.release()
    for outcome in await asyncio.gather(*theirs, asked, return_exceptions=True):
        assert isinstance(outcome, ManifestUnknown)
    assert layers.most < 50
    with pytest.raises(ManifestUnknown):
        await asked
