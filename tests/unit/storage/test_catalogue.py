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
