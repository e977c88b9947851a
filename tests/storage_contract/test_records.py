import asyncio
import time

import pytest

from nixery.errors import StorageError
from nixery.gc.records import enforce_bounds
from nixery.storage.opening import Storage
from nixery.storage.records import KINDS, RecordKind, ordered_key

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


async def test_renewing_a_record_updates_its_time(storage: Storage) -> None:
    await storage.records.put("tags", KEYS[0], b"content")
    (before,) = [record async for record in storage.records.scan("tags")]
    await asyncio.sleep(1.1)  # the resolution of S3's clock
    await storage.records.renew("tags", KEYS[0], b"content")
    (after,) = [record async for record in storage.records.scan("tags")]
    assert after.modified > before.modified
    await storage.records.renew("tags", KEYS[1], b"content")
    assert await storage.records.get("tags", KEYS[1]) == b"content"


async def test_a_record_of_too_many_values_is_missing(storage: Storage) -> None:
    most = KINDS["evaluations"].commas
    assert most is not None
    await storage.records.put("evaluations", KEYS[0], b"," * most)
    assert await storage.records.get("evaluations", KEYS[0]) == b"," * most
    await storage.records.put("evaluations", KEYS[0], b"," * (most + 1))
    assert await storage.records.get("evaluations", KEYS[0]) is None


async def test_no_record_is_larger_than_its_kind_allows(storage: Storage) -> None:
    largest = KINDS["tags"].largest
    await storage.records.put("tags", KEYS[0], b"x" * largest)
    assert await storage.records.get("tags", KEYS[0]) == b"x" * largest
    with pytest.raises(StorageError, match="the limit"):
        await storage.records.put("tags", KEYS[1], b"x" * (largest + 1))
    # Others may have written one.
    await storage.driver.write(f"records/tags/{KEYS[1][:2]}/{KEYS[1]}", b"x" * (largest + 1))
    assert await storage.records.get("tags", KEYS[1]) is None


@pytest.mark.parametrize("key", ["", "a", "../../etc/passwd", "ab/../../x", "AB" * 32, "a" * 129, "ab\n"])
async def test_a_key_cannot_leave_its_directory(storage: Storage, key: str) -> None:
    for call in (
        storage.records.get("tags", key),
        storage.records.put("tags", key, b""),
        storage.records.renew("tags", key, b""),
        storage.records.delete("tags", key),
        storage.records.get("../tags", KEYS[0]),
    ):
        with pytest.raises(StorageError, match="is not the name of a record"):
            await call


async def test_what_is_not_where_it_belongs_is_not_listed(storage: Storage) -> None:
    await storage.records.put("tags", KEYS[0], b"content")
    for name in ("records/tags/ff/" + KEYS[1], "records/tags/00/readme", "records/tags/00/AB"):
        await storage.driver.write(name, b"content")
    assert [record.key async for record in storage.records.scan("tags")] == [KEYS[0]]


async def test_records_are_bounded_in_number(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "tags", RecordKind(1000, 10, 3600.0))
    for number in range(15):
        await storage.records.put("tags", f"{number:064x}", b"content")
    assert await enforce_bounds(storage.records, time.time()) == 6
    assert len([record async for record in storage.records.scan("tags")]) == 9
    # An hour later all of them are too old.
    assert await enforce_bounds(storage.records, time.time() + 3700) == 9


async def test_ordered_keys_are_listed_in_order_and_after_any_key(storage: Storage) -> None:
    texts = sorted(
        {
            text[:length]
            for text in (b"a/b\0t", b"a-b\0t", b"z" * 384)
            for length in (*range(1, 7), 125, 126, 384)
        }
    )
    for text in reversed(texts):
        await storage.records.put("tags-in-order", ordered_key(text), b"{}")
    for after in (b"", b"a", b"a.", b"a/b\0s", texts[-2], texts[-1]):
        found = [
            listed.key async for listed in storage.records.scan("tags-in-order", after=ordered_key(after))
        ]
        assert found == [ordered_key(text) for text in texts if text > after]
        for key in found[-1:]:
            assert await storage.records.get("tags-in-order", key) == b"{}"
    await storage.records.delete("tags-in-order", ordered_key(texts[-1]))
    assert len([listed async for listed in storage.records.scan("tags-in-order")]) == len(texts) - 1
