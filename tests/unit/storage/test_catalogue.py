from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from nixery.oci.digest import Digest
from nixery.storage import catalogue as catalogue_module
from nixery.storage.catalogue import Catalogue, ReferrerRecord, TagRecord
from nixery.storage.driver import StoredObject
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore, ordered_key

MANIFEST = Digest.of(b"manifest")
MANY, NAMES = 10_000, 1000


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

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
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
    tagged += [(f"name{number:05}", "latest") for number in range(NAMES)]
    made: set[Path] = set()
    for name, tag in tagged:
        key = ordered_key(f"{name}\0{tag}".encode())
        path = root / "records" / "tags-in-order" / key[:2] / key
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_text(TagRecord(name=name, tag=tag, digest=str(MANIFEST)).model_dump_json())
    return root


@pytest.mark.parametrize("after", ["", "l", "many", "name00499"])
async def test_a_page_of_names_costs_a_handful_of_calls(many_tags: Path, after: str) -> None:
    driver = CountingDriver(many_tags, many_tags / "temporary")
    expected = [name for name in ("many", *(f"name{number:05}" for number in range(NAMES))) if name > after][
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
    while page := await catalogue.names(names[-1], 900):
        names += page
    assert names[1:] == ["many", *(f"name{number:05}" for number in range(NAMES))]
    while page := await catalogue.tags("many", tags[-1], 900):
        tags += page
    assert tags[1:] == [f"v{number:05}" for number in range(MANY)]


@pytest.mark.parametrize(
    "after",
    ["é", "\udcff", "z" * 10_000, "a\0b", "\0"],
    ids=["not ASCII", "a surrogate", "too long", "a zero byte inside", "a zero byte"],
)
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


async def test_tags_are_listed_in_ascii_order_for_their_name_only(catalogue: Catalogue) -> None:
    for name, tag in [("a", "b"), ("a", "B"), ("a", "1"), ("a/b", "x"), ("a", "b")]:
        await catalogue.record_tag(name, tag, MANIFEST)
    assert await catalogue.tags("a", "", 100) == ["1", "B", "b"]
    assert await catalogue.tags("b", "", 100) == []
    assert await catalogue.names("", 100) == ["a", "a/b"]


async def test_another_server_on_the_same_storage_lists_recorded_tags(
    catalogue: Catalogue, records: RecordStore
) -> None:
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await Catalogue(records).tags("a", "", 100) == ["b"]


async def test_the_next_pull_records_a_tag_that_could_not_be_written(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    obstacle = tmp_path / "records" / "tags-in-order"
    obstacle.touch()
    await catalogue.record_tag("a", "b", MANIFEST)
    obstacle.unlink()
    assert await catalogue.tags("a", "", 100) == []
    await catalogue.record_tag("a", "b", MANIFEST)
    assert await catalogue.tags("a", "", 100) == ["b"]


async def test_all_spellings_of_an_image_are_listed_as_one_name(catalogue: Catalogue, tmp_path: Path) -> None:
    """Clients can request an image under any number of names."""
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
    "text",
    [
        b"",
        b"a",
        b"a\0",
        b"\0b",
        b"A\0b",
        b"<script>\0b",
        b"a" * 300 + b"\0b",
        b"a\0b\r\nx: y",
        b"a\0b\0c",
        b"c/a\0b",
        b"\xff\0b",
    ],
    ids=range(11),
)
async def test_keys_that_this_code_would_not_write_are_not_listed(
    catalogue: Catalogue, records: RecordStore, text: bytes
) -> None:
    if text:
        await records.put("tags-in-order", ordered_key(text), b"{}")
    await catalogue.record_tag("z", "latest", MANIFEST)
    assert await catalogue.names("", 100) == ["z"]
    assert await catalogue.tags("a", "", 100) == []


@pytest.mark.security
async def test_a_page_reads_a_bounded_number_of_planted_keys(
    catalogue: Catalogue, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "_MOST_READ", 20)
    for number in range(30):
        # Of no image, and between the tags of one.
        await records.put("tags-in-order", ordered_key(b"a\0-%02d" % number), b"{}")
    for name in ("a", "b"):
        await catalogue.record_tag(name, "latest", MANIFEST)
    assert await catalogue.names("", 100) == []
    assert await catalogue.tags("a", "", 100) == []


@pytest.mark.parametrize(
    "record",
    [
        {"name": "b", "tag": "b", "digest": str(MANIFEST)},
        {"name": "a", "tag": "c", "digest": str(MANIFEST)},
        {"name": "<script>", "tag": "b", "digest": str(MANIFEST)},
        {"name": "a" * 300, "tag": "b", "digest": str(MANIFEST)},
        {"name": "a", "tag": "b\r\nx: y", "digest": str(MANIFEST)},
        {"name": "a", "tag": str(MANIFEST), "digest": str(MANIFEST)},
        {"name": "a"},
    ],
)
async def test_an_old_record_under_the_hashes_of_another_tag_is_not_listed(
    catalogue: Catalogue, records: RecordStore, record: dict[str, str]
) -> None:
    key = sha256(b"a").hexdigest() + sha256(b"b").hexdigest()
    await records.put("tags", key, json.dumps(record).encode())
    assert await catalogue.names("", 100) == []
    await catalogue.migrate()
    assert await catalogue.names("", 100) == []
    assert await records.get("tags", key) is None


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


async def test_old_tags_are_read_once(
    catalogue: Catalogue, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        key = sha256(b"a").hexdigest() + sha256(b"%02d" % number).hexdigest()
        record = TagRecord(name="a", tag=f"{number:02}", digest=str(MANIFEST))
        await records.put("tags", key, record.model_dump_json().encode())
    read = 0
    get = records.get

    async def counted(kind: str, key: str) -> bytes | None:
        nonlocal read
        read += 1
        return await get(kind, key)

    monkeypatch.setattr(records, "get", counted)
    for found in await asyncio.gather(*(catalogue.tags("a", "", 100) for _ in range(3))):
        assert len(found) == 40
    assert read == 40


async def test_referrers_are_found_by_their_subject(records: RecordStore) -> None:
    descriptor = {"digest": str(MANIFEST), "artifactType": "x/y"}
    subject = Digest.of(b"subject")
    await records.put("referrers", subject.hex + MANIFEST.hex, json.dumps(descriptor).encode())
    assert await Catalogue(records).referrers(subject) == [descriptor]
    assert await Catalogue(records).referrers(MANIFEST) == []


@pytest.mark.security
async def test_a_list_of_referrers_has_few_bytes(records: RecordStore) -> None:
    """Each of a thousand may have 64 KiB, and each connection had a list of them in memory."""
    subject = Digest.of(b"subject")
    for number in range(80):
        digest = Digest.of(b"%d" % number)
        descriptor = {"digest": str(digest), "annotations": {"a": "x" * 60_000}}
        await records.put("referrers", subject.hex + digest.hex, json.dumps(descriptor).encode())
    assert 60 <= len(await Catalogue(records).referrers(subject)) < 70


@pytest.mark.security
def test_a_planted_referrer_is_read_up_to_its_first_wrong_annotation() -> None:
    """A list of referrers reads a thousand records, each of which had an error of a kilobyte for ten thousand."""
    annotations = {f"{number}": 0 for number in range(10_000)}
    with pytest.raises(ValidationError) as error:
        ReferrerRecord.model_validate({"digest": "", "annotations": annotations})
    assert error.value.error_count() == 1
