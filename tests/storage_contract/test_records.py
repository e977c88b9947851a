import asyncio
import time

from nixery.storage.opening import Storage

KEYS = [f"{number:064x}" for number in (1, 2, 1 << 250)]


async def test_records_are_replaced_as_a_whole(storage: Storage) -> None:
    assert await storage.records.get("tags", KEYS[0]) is None
    for content in (b"long content", b"short"):
        await storage.records.put("tags", KEYS[0], content)
        assert await storage.records.get("tags", KEYS[0]) == content


async def test_records_are_listed_by_prefix(storage: Storage) -> None:
    for key in reversed(KEYS):
        await storage.records.put("tags", key, key.encode())
        await storage.records.put("pins", key, b"another kind")
    for prefix, expected in {"": KEYS, "0": KEYS[:3], "0" * 63: KEYS[:2], KEYS[2]: KEYS[2:], "f": []}.items():
        found = [record.key async for record in storage.records.scan("tags", prefix)]
        assert sorted(found) == [key for key in expected if key.startswith(prefix)]
    assert [record.key async for record in storage.records.scan("builds")] == []


async def test_records_are_listed_and_deleted(storage: Storage) -> None:
    for key in KEYS:
        await storage.records.put("tags", key, b"content")
    found = [record async for record in storage.records.scan("tags")]
    assert sorted(record.key for record in found) == KEYS
    assert all(time.time() - 60 < record.modified < time.time() + 5 for record in found)
    for _ in range(2):
        await storage.records.delete("tags", KEYS[0])
    assert sorted([record.key async for record in storage.records.scan("tags")]) == KEYS[1:]


async def test_a_renewed_record_is_younger(storage: Storage) -> None:
    await storage.records.put("tags", KEYS[0], b"content")
    (before,) = [record async for record in storage.records.scan("tags")]
    await asyncio.sleep(1.1)  # the resolution of S3's clock
    await storage.records.renew("tags", KEYS[0], b"content")
    (after,) = [record async for record in storage.records.scan("tags")]
    assert after.modified > before.modified
    await storage.records.renew("tags", KEYS[1], b"content")
    assert await storage.records.get("tags", KEYS[1]) == b"content"
