from __future__ import annotations

import asyncio

import pytest

from nixery.gc import collector as lease
from nixery.gc.collector import CollectionLock
from nixery.oci.digest import Digest
from nixery.storage.leases import COLLECTIONS
from tests.unit.gc.conftest import Store

DIGEST = Digest.of(b"condemned")


async def test_a_slow_renewal_takes_no_condemnation_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_EVERY", 0.01)
    renew, begun = store.records.renew, asyncio.Event()

    async def slowly(kind: str, key: str, content: bytes) -> None:
        """As a bucket may answer: what was written last was asked for first."""
        begun.set()
        await asyncio.sleep(0.1)
        await renew(kind, key, content)
        await store.records.put(kind, key, content)

    monkeypatch.setattr(store.records, "renew", slowly)
    async with CollectionLock(store.records) as held:
        await begun.wait()
        await held.condemn([DIGEST])
        await asyncio.sleep(0.3)
        (record,) = [listed.key async for listed in store.records.scan(COLLECTIONS)]
        assert await store.records.get(COLLECTIONS, record) == DIGEST.hex.encode()
