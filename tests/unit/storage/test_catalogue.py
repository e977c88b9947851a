from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nixery.oci.digest import Digest
from nixery.storage.catalogue import Catalogue, TagRecord
from nixery.storage.driver import Entry
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore, ordered_key

MANIFEST = Digest.of(b"manifest")
MANY = 10_000


@pytest.fixture
def catalogue(records: RecordStore) -> Catalogue:
    return Catalogue(records)


class CountingDriver(FilesystemDriver):
    """Counts the calls that would be requests to a bucket: listings by pages of a thousand, as buckets list."""

    def __init__(self, root: Path, temporary: Path) -> None:
        super().__init__(root, temporary)
        self.calls: list[str] = []

    async def read(self, name: str, largest: int) -> bytes | None:
        self.calls.append(f"read {name}")
        return await super().read(name, largest)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[Entry, None]:
        self.calls.append(f"list {directory}")
        number = 0
        async for entry in super().list(directory, after):
            number += 1
            if number % 1000 == 0:
                self.calls.append(f"next page of {directory}")
            yield entry


@pytest.fixture(scope="module")
def many_tags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with many tags of one name, and many names of one tag, written as quickly as possible."""
    root = tmp_path_factory.mktemp("storage")
    (root / "temporary").mkdir()
    tagged = [("many", f"v{number:05}") for number in range(MANY)]
    tagged += [(f"name{number:05}", "latest") for number in range(MANY)]
    for name, tag in tagged:
        key = ordered_key(f"{name}\0{tag}".encode())
        path = root / "records" / "tags-in-order" / key[:2] / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TagRecord(name=name, tag=tag, digest=str(MANIFEST)).model_dump_json())
    return root


@pytest.mark.parametrize("after", ["", "l", "many", "name04999"])
async def test_a_page_of_names_costs_a_handful_of_calls(many_tags: Path, after: str) -> None:
    driver = CountingDriver(many_tags, many_tags / "temporary")
    expected = [name for name in ("many", *(f"name{number:05}" for number in range(MANY))) if name > after][
        :2
    ]
    assert await Catalogue(RecordStore(driver)).names(after, 2) == expected
    assert len(driver.calls) <= 5, driver.calls


@pytest.mark.parametrize("after", ["", "v", "v05000", "v09999", "w"])
async def test_a_page_of_tags_costs_a_handful_of_calls(many_tags: Path, after: str) -> None:
    driver = CountingDriver(many_tags, many_tags / "temporary")
    expected = [tag for tag in (f"v{number:05}" for number in range(MANY)) if tag > after][:2]
    assert await Catalogue(RecordStore(driver)).tags("many", after, 2) == expected
    assert len(driver.calls) <= 5, driver.calls


async def test_pages_together_are_all_names_and_tags(many_tags: Path) -> None:
    catalogue = Catalogue(RecordStore(FilesystemDriver(many_tags, many_tags / "temporary")))
    names, tags = [""], [""]
    while page := await catalogue.names(names[-1], 1500):
        names += page
    assert names[1:] == ["many", *(f"name{number:05}" for number in range(MANY))]
    while page := await catalogue.tags("many", tags[-1], 1500):
        tags += page
    assert tags[1:] == [f"v{number:05}" for number in range(MANY)]


@pytest.mark.parametrize("after", ["é", "\udcff", "z" * 10_000, "a\0b", "\0"])
async def test_any_text_is_a_beginning_of_a_page(catalogue: Catalogue, after: str) -> None:
    for name in ("a", "a/b", "zz"):
        await catalogue.record_tag(name, "latest", MANIFEST)
    assert await catalogue.names(after, 10) == [name for name in ("a", "a/b", "zz") if name > after]
    assert await catalogue.tags("a", after, 10) == [tag for tag in ("latest",) if tag > after]


@pytest.mark.parametrize("tag", ["t", "t" * 128])
async def test_names_and_tags_of_the_greatest_length_are_listed(catalogue: Catalogue, tag: str) -> None:
    names = ["a" * 255, "a" * 254, "/".join(["a"] * 128), "b" * 120]
    for name in names:
        await catalogue.record_tag(name, tag, MANIFEST)
    listed = await catalogue.names("", 10)
    assert listed == sorted(listed)
    assert {"a" * 255, "a" * 254, "b" * 120} < set(listed)
    assert await catalogue.tags("a" * 255, "", 10) == [tag]


async def test_tags_are_in_ascii_order_and_of_their_name_alone(catalogue: Catalogue) -> None:
    for name, tag in [("a", "b"), ("a", "B"), ("a", "1"), ("a/b", "x"), ("a", "b")]:
        await catalogue.record_tag(name, tag, MANIFEST)
    assert await catalogue.tags("a", "", 100) == ["1", "B", "b"]
    assert await catalogue.tags("b", "", 100) == []
    assert await catalogue.names("", 100) == ["a", "a/b"]


async def test_another_server_on_the_same_storage_lists_recorded_tags(catalogue: Catalogue, records: RecordStore) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await Catalogue(records).tags("a", "", 100) == ["b"]


async def test_a_tag_that_could_not_be_written_is_written_by_the_next_pull(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "records" / "tags-in-order"
    in_the_way.touch()
    await catalogue.record_tag("a", "b", MANIFEST)
    in_the_way.unlink()
    assert await catalogue.tags("a", "", 100) == []
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await catalogue.tags("a", "", 100) == ["b"]


async def test_all_names_of_an_image_are_one(catalogue: Catalogue, tmp_path: Path) -> None:
    """A client could ask for it under any number of others."""
    for name in ("hello/greeting", "greeting/hello", "hello/hello/greeting", "greeting/hello/greeting"):
        await catalogue.record_tag(name, "latest", MANIFEST)
    assert await catalogue.names("", 100) == ["greeting/hello"]
    assert (
        await catalogue.tags("hello/greeting", "", 100)
        == await catalogue.tags("greeting/hello", "", 100)
        == ["latest"]
    )
    assert len(list((tmp_path / "records" / "tags-in-order").glob("*/*"))) == 1


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
    (path,) = (tmp_path / "records" / "tags-in-order").glob("*/*")
    path.unlink()
    path.write_text(json.dumps(record))
    assert await catalogue.names("", 100) == []


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
async def test_a_torn_referrer_is_left_out(records: RecordStore, tmp_path: Path, content: bytes) -> None:
    subject = Digest.of(b"subject")
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
        assert len(await catalogue.tags("a", "", 100)) == 40
    assert read == 40


def tear(records: Path) -> None:
    (record,) = records.glob("*/*")
    record.chmod(0o644)
    record.write_bytes(b"{")


async def test_a_torn_record_is_passed_over(catalogue: Catalogue, tmp_path: Path) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    tear(tmp_path / "records" / "tags-in-order")
    assert await catalogue.tags("a", "", 100) == []


async def test_referrers_are_found_by_their_subject(records: RecordStore) -> None:
    descriptor = {"digest": str(MANIFEST), "artifactType": "x/y"}
    subject = Digest.of(b"subject")
    await records.put("referrers", subject.hex + MANIFEST.hex, json.dumps(descriptor).encode())
    assert await Catalogue(records).referrers(subject) == [descriptor]
    assert await Catalogue(records).referrers(MANIFEST) == []
