import json
from pathlib import Path

import pytest

from nixery.oci.digest import Digest
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem_records import FilesystemRecordStore

MANIFEST = Digest.of(b"manifest")


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(FilesystemRecordStore(tmp_path, tmp_path))


async def test_tags_are_in_ascii_order_and_of_their_name_alone(catalogue: Catalogue) -> None:
    for name, tag in [("a", "b"), ("a", "B"), ("a", "1"), ("a/b", "x"), ("a", "b")]:
        await catalogue.record_tag(name, tag, MANIFEST)
    assert await catalogue.tags("a") == ["1", "B", "b"]
    assert await catalogue.tags("b") == []
    assert await catalogue.names() == ["a", "a/b"]


async def test_another_catalogue_on_the_same_store_knows_them(catalogue: Catalogue, tmp_path: Path) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await Catalogue(FilesystemRecordStore(tmp_path, tmp_path)).tags("a") == ["b"]


async def test_a_tag_that_could_not_be_written_is_written_by_the_next_pull(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "records" / "tags"
    in_the_way.touch()
    await catalogue.record_tag("a", "b", MANIFEST)
    in_the_way.unlink()
    assert await catalogue.tags("a") == []
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await catalogue.tags("a") == ["b"]


async def test_all_names_of_an_image_are_one(catalogue: Catalogue, tmp_path: Path) -> None:
    """A client could ask for it under any number of others."""
    for name in ("hello/greeting", "greeting/hello", "hello/hello/greeting", "greeting/hello/greeting"):
        await catalogue.record_tag(name, "latest", MANIFEST)
    assert await catalogue.names() == ["greeting/hello"]
    assert await catalogue.tags("hello/greeting") == await catalogue.tags("greeting/hello") == ["latest"]
    assert len(list((tmp_path / "records" / "tags").glob("*/*"))) == 1


@pytest.mark.parametrize(
    "record",
    [
        {"name": "b", "tag": "b", "digest": str(MANIFEST)},
        {"name": "a", "tag": "c", "digest": str(MANIFEST)},
        {"name": "<script>", "tag": "b", "digest": str(MANIFEST)},
        {"name": "a" * 300, "tag": "b", "digest": str(MANIFEST)},
        {"name": "a", "tag": "b\r\nx: y", "digest": str(MANIFEST)},
        {"name": "a", "tag": str(MANIFEST), "digest": str(MANIFEST)},
    ],
)
async def test_a_record_tells_of_its_own_tag_alone(
    tmp_path: Path, record: dict[str, str], catalogue: Catalogue
) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    (path,) = (tmp_path / "records" / "tags").glob("*/*")
    path.unlink()
    path.write_text(json.dumps(record))
    assert await catalogue.names() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"digest": 1}',
        b'{"digest": "sha256:0"}',
        json.dumps({"digest": str(Digest.of(b"another"))}).encode(),
        json.dumps({"digest": str(MANIFEST), "size": -1}).encode(),
        json.dumps({"digest": str(MANIFEST), "annotations": {"a": {"b": "c"}}}).encode(),
        b'{"digest":' * 10_000,
    ],
    ids=range(9),
)
async def test_a_torn_referrer_is_passed_over(tmp_path: Path, content: bytes) -> None:
    records, subject = FilesystemRecordStore(tmp_path, tmp_path), Digest.of(b"subject")
    path = tmp_path / "records" / "referrers" / subject.hex[:2] / (subject.hex + MANIFEST.hex)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert await Catalogue(records).referrers(subject) == []


async def test_a_listing_reads_each_record_once(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        await catalogue.record_tag("a", f"{number:02}", MANIFEST)
    read = 0
    get = catalogue._records.get

    async def counted(kind: str, key: str) -> bytes | None:
        nonlocal read
        read += 1
        return await get(kind, key)

    monkeypatch.setattr(catalogue._records, "get", counted)
    for _ in range(3):
        assert len(await catalogue.tags("a")) == 40
    assert read == 40


def tear(records: Path) -> None:
    (record,) = records.glob("*/*")
    record.chmod(0o644)
    record.write_bytes(b"{")


async def test_a_torn_record_is_passed_over(catalogue: Catalogue, tmp_path: Path) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    tear(tmp_path / "records" / "tags")
    assert await catalogue.tags("a") == []


async def test_referrers_are_found_by_what_they_refer_to(tmp_path: Path) -> None:
    records = FilesystemRecordStore(tmp_path, tmp_path)
    descriptor = {"digest": str(MANIFEST), "artifactType": "x/y"}
    subject = Digest.of(b"subject")
    await records.put("referrers", subject.hex + MANIFEST.hex, json.dumps(descriptor).encode())
    assert await Catalogue(records).referrers(subject) == [descriptor]
    assert await Catalogue(records).referrers(MANIFEST) == []
