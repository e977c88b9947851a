from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.records import KINDS, RecordStore, decode, ordered_key, text_of

KEYS = [f"{number:064x}" for number in range(3)]


async def test_records_are_listed_by_kind_renewed_and_deleted(records: RecordStore, tmp_path: Path) -> None:
    await records.put("tags", "aa", b"1")
    await records.put("tags", "bb", b"2")
    await records.put("pins", "cc", b"3")
    os.utime(tmp_path / "records" / "tags" / "aa" / "aa", (1, 1))
    assert {record.key: record.modified > 1 async for record in records.scan("tags")} == {
        "aa": False,
        "bb": True,
    }
    await records.renew("tags", "aa", b"1")
    await records.renew("tags", "dd", b"4")
    assert await records.get("tags", "dd") == b"4"
    await records.delete("tags", "bb")
    await records.delete("tags", "bb")
    assert {record.key: record.modified > 1 async for record in records.scan("tags")} == {
        "aa": True,
        "dd": True,
    }
    assert [record async for record in records.scan("builds")] == []


async def test_a_scan_survives_records_that_are_deleted_meanwhile(records: RecordStore) -> None:
    for key in KEYS:
        await records.put("tags", key, key.encode())
    found = []
    async for listed in records.scan("tags"):
        for key in KEYS:
            await records.delete("tags", key)
        found.append(listed.key)
    assert set(found) <= set(KEYS)


TEXTS = sorted(
    {
        text[:length]
        for text in (b"a/b\0latest", b"a-b\0v1", b"z" * 255 + b"\0" + b"t" * 128)
        for length in range(1, 385)
    }
)


async def test_ordered_keys_of_any_length_are_listed_in_the_order_of_their_texts(
    records: RecordStore,
) -> None:
    for text in reversed(TEXTS):
        await records.put("tags-in-order", ordered_key(text), b"{}")
    assert [text_of(listed.key) async for listed in records.scan("tags-in-order")] == TEXTS


@pytest.mark.parametrize("number", [0, 10, 124, 125, 126, 250, 300, -1])
async def test_a_scan_begins_after_any_key(records: RecordStore, number: int) -> None:
    for text in TEXTS:
        await records.put("tags-in-order", ordered_key(text), b"{}")
    for after, expected in ((TEXTS[number], TEXTS[number:][1:]), (TEXTS[number][:-1] + b"\1", None)):
        found = [
            text_of(listed.key) async for listed in records.scan("tags-in-order", after=ordered_key(after))
        ]
        assert found == ([text for text in TEXTS if text > after] if expected is None else expected)


@pytest.mark.parametrize("key", ["0", "w0", "0000000z", "01", "AB"])
def test_a_key_that_is_not_an_encoded_text_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"key of a text|alphabet|padded|digit|padding"):
        text_of(key)


async def test_hexadecimal_kinds_take_no_ordered_keys(records: RecordStore) -> None:
    with pytest.raises(StorageError, match="is not the name of a record"):
        await records.put("tags", ordered_key(b"a text"), b"{}")


@pytest.mark.parametrize("content", [None, b"", b"sha256:0", b"\xff"])
def test_missing_and_torn_records_are_decoded_as_missing(content: bytes | None) -> None:
    assert decode(lambda record: Digest.parse(record.decode()), content) is None


def test_a_valid_record_is_decoded() -> None:
    digest = Digest.of(b"content")
    assert decode(lambda record: Digest.parse(record.decode()), str(digest).encode()) == digest


def test_every_kind_has_bounds() -> None:
    assert all(0 < kind.largest <= 64 << 20 and kind.most > 0 and kind.age > 0 for kind in KINDS.values())
