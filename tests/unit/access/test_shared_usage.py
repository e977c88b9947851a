"""Quotas of builds hold for all servers of a storage together."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nixery.access import shared_usage
from nixery.access.configuration import Quota
from nixery.access.identity import Identity, Kind
from nixery.access.quotas import Quotas
from nixery.access.shared_usage import SharedUsage
from nixery.errors import QuotaExceeded, StorageError
from nixery.request_context import Client
from nixery.storage.records import KINDS, QUOTA_USAGE, RecordStore

ALICE, BOB = (Client(f"user:{name}") for name in ("alice", "bob"))
HOUR = 3600


class Servers:
    """Servers of one storage, and their clock, which begins at the present time: the storage has times of its own."""

    def __init__(self, records: RecordStore) -> None:
        self.records = records
        self.ahead = 0.0
        self._stack = AsyncExitStack()

    def clock(self) -> float:
        return time.time() + self.ahead

    async def start(self, **limits: int) -> Server:
        usage = SharedUsage(self.records, self.clock)
        server = Server(Quotas([Quota(who=("everyone",), **limits)], self.clock, usage), usage)
        self._stack.push_async_callback(usage.close)
        return server

    async def stop(self) -> None:
        await self._stack.aclose()


class Server:
    """One of them."""

    def __init__(self, quotas: Quotas, usage: SharedUsage) -> None:
        self._quotas = quotas
        self.usage = usage

    async def build(self, client: Client = ALICE, size: int | None = 1) -> bool:
        """Have something built; return whether the quota allows it."""
        await self._quotas.refresh()
        self._quotas.request(Identity(Kind.PASSWORD, client.name), client)
        try:
            leave = self._quotas.admit_build([client])
        except QuotaExceeded:
            return False
        leave(size)
        writing = self.usage._writing
        assert writing is not None
        await writing
        return True

    async def builds(self, most: int, client: Client = ALICE) -> int:
        return sum([await self.build(client) for _ in range(most)])


@pytest.fixture
async def servers(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    monkeypatch.setattr(shared_usage, "_PAUSE", 0.0)
    monkeypatch.setattr(shared_usage, "_RETRY", 0.0)
    monkeypatch.setattr(shared_usage, "_PATIENCE", 60.0)
    started = Servers(records)
    yield started
    await started.stop()


async def test_servers_allow_together_what_one_allows(servers: Servers) -> None:
    three = [await servers.start(builds_per_hour=6) for _ in range(3)]
    allowed = [await server.build() for _ in range(4) for server in three]
    assert sum(allowed) == 6
    # Another identity has its own.
    assert await three[0].builds(9, BOB) == 6
    assert not await three[1].build(BOB)
    # They free up for all servers.
    servers.ahead += HOUR / 6 + 1
    assert [await server.build() for server in three] == [True, False, False]


async def test_bytes_count_for_all_servers(servers: Servers) -> None:
    one, other = [await servers.start(bytes_per_day=100) for _ in range(2)]
    assert await one.build(size=70)
    assert await other.build(size=40)
    assert not await one.build()
    assert not await other.build()
    servers.ahead += HOUR * 24 * 0.2
    assert await one.build()


async def test_a_build_that_never_started_does_not_count(servers: Servers) -> None:
    one, other = [await servers.start(builds_per_hour=2) for _ in range(2)]
    for _ in range(5):
        assert await one.build(size=None)
        assert await other.build(size=None)
    assert await one.build()
    assert await other.build()
    assert not await one.build()


async def test_a_restarted_server_continues(servers: Servers) -> None:
    server = await servers.start(builds_per_hour=4)
    assert await server.builds(9) == 4
    await server.usage.close()
    again = await servers.start(builds_per_hour=4)
    assert await again.builds(9) == 0
    servers.ahead += HOUR / 2 + 1
    third = await servers.start(builds_per_hour=4)
    assert await third.builds(9) == 2


async def test_what_is_not_written_yet_is_written_at_the_end(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await servers.start(builds_per_hour=1)
    assert await server.build()
    monkeypatch.setattr(SharedUsage, "_write_soon", lambda _: asyncio.sleep(0))
    server.usage.note(BOB.name, builds=1)
    await server.usage.close()
    assert not await (await servers.start(builds_per_hour=1)).build(BOB)


async def test_without_the_storage_each_server_counts_alone_and_says_so_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("storage is read-only")

    one, other = [await servers.start(builds_per_hour=2) for _ in range(2)]
    written = servers.records.put
    monkeypatch.setattr(servers.records, "put", fail)
    with capture_logs() as lines:
        one.usage.note(BOB.name, builds=1)
        one.usage.note(BOB.name, builds=1)
        for _ in range(5):
            await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["cannot share the use of quotas with other servers"]
    await other.usage.refresh()
    assert not other.usage.take(BOB.name)
    # It is written once the storage works again.
    monkeypatch.setattr(servers.records, "put", written)
    assert one.usage._writing is not None
    await one.usage._writing
    assert not await other.build(BOB)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b'{"first": 0, "events": [[1e300, "%s", 1, 0]]}' % (b"ab" * 16),
        b'{"first": 0, "events": [[1, "%s", 1000, 0]]}' % (b"ab" * 16),
        b'{"first": 0, "events": [[1, "%s", 1, 0]]}' % (b"/." * 16),
        b'{"first": -1, "events": []}',
        json.dumps({"first": 0, "events": [[1, "ab" * 16, 1, 0]] * 2001}).encode(),
    ],
    ids=range(7),
)
async def test_a_record_that_no_server_writes_is_ignored(servers: Servers, content: bytes) -> None:
    await servers.records.put(QUOTA_USAGE, "ab", content)
    server = await servers.start(builds_per_hour=3)
    assert await server.builds(5) == 3
    assert server.usage._number_pending == 0


async def test_a_clock_that_is_ahead_makes_nothing_count_for_longer(servers: Servers) -> None:
    key = shared_usage._key_of(ALICE.name)
    planted = {"first": 0, "events": [[1e10, key, 1, 0]]}
    await servers.records.put(QUOTA_USAGE, "ab", json.dumps(planted).encode())
    server = await servers.start(builds_per_hour=1)
    assert not await server.build()
    servers.ahead += HOUR + 1
    assert await server.build()


async def test_records_and_memory_are_bounded(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = [await servers.start(builds_per_hour=10_000) for _ in range(2)]
    for number in range(5000):
        one.usage.note(f"user:{number}", builds=1, size=10**30)
    assert one.usage._writing is not None
    await one.usage._writing
    (listed,) = [record async for record in servers.records.scan(QUOTA_USAGE)]
    content = await servers.records.get(QUOTA_USAGE, listed.key)
    assert content is not None
    assert len(content) < KINDS[QUOTA_USAGE].largest
    assert len(json.loads(content)["events"]) == 2000
    monkeypatch.setattr(shared_usage, "_MOST_PENDING", 100)
    await other.usage.refresh()
    assert other.usage._number_pending == 100
    # The latest are kept, and an event is read once.
    assert other.usage.take("user:4999")
    await other.usage.refresh()
    assert not other.usage.take("user:4999")
    assert len(other.usage._pending) == 99
    # After a day, nothing counts.
    servers.ahead += 24 * HOUR + 1
    one.usage.note("user:1", builds=1)
    assert len(one.usage._events) == 1


async def test_no_name_and_no_address_is_written(servers: Servers) -> None:
    assert await (await servers.start(builds_per_hour=1)).build(Client("192.0.2.1"))
    (listed,) = [record async for record in servers.records.scan(QUOTA_USAGE)]
    assert b"192.0.2" not in (await servers.records.get(QUOTA_USAGE, listed.key) or b"192.0.2")


async def test_quotas_without_builds_read_nothing(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await servers.start(requests_per_minute=1)
    monkeypatch.setattr(servers.records, "scan", None)
    await server._quotas.refresh()
    server._quotas.admit_build([ALICE])(1)
    assert server.usage._writing is None


async def test_a_record_that_changes_within_a_second_of_a_bucket_is_read_again(
    servers: Servers, tmp_path: Path
) -> None:
    one, other = [await servers.start(builds_per_hour=2) for _ in range(2)]
    second = int(time.time())
    for expected in (1, 2):
        assert await one.build()
        (record,) = (path for path in (tmp_path / "records" / QUOTA_USAGE).rglob("*") if path.is_file())
        # Buckets have times in whole seconds.
        os.utime(record, (second, second))
        await other.usage.refresh()
        assert other.usage._number_pending == expected
