"""Bounds of the package index, with package sets whose authors make everything as large and as slow as they may."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from rapidfuzz import process
from rapidfuzz.distance import OSA

from nixery.builds import index_records, package_index, package_search
from nixery.builds.index_records import HEADER, Header, PackageVersion, Row, StateIndex, StateVersions
from nixery.builds.package_index import PackageIndex
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.pins import Pins
from nixery.errors import EvaluationFailed
from nixery.image.platform import AMD64, Platform
from nixery.image.spelling import RESERVED, NearNames
from nixery.nix.indexing import AttributePath, Reported
from nixery.nix.packages import NixFiles, PackageSet
from nixery.sources.source import Pin, Reference
from nixery.storage.records import PACKAGE_DETAILS, PACKAGES, RecordStore, decode

pytestmark = pytest.mark.security

DESCRIPTION = "word " * 100

PIN = Pin("fake:", "latest", "latest")


class HostileSet:
    """Stands in for the package source, for Nix and for its evaluations."""

    description = "fake:"

    def __init__(self, names: dict[AttributePath, list[str] | None]) -> None:
        self.names_of = names
        self.writes: list[bool] = []
        self.slow = ""
        self.stops_after = 1000
        self.begun, self.described = asyncio.Event(), asyncio.Event()

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=False)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        return Pin("fake:", reference.name, reference.name)

    async def require_reachable(self, reference: Reference) -> None:
        raise NotImplementedError(reference)

    async def confirm(self, pin: Pin) -> None:
        """Nothing changes."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[PackageSet]:
        yield NixFiles(Path("/nowhere") / pin.identity, self_contained=True)

    async def indexing(
        self, platform: Platform, package_set: PackageSet, *, write_derivations: bool = False
    ) -> HostileEvaluation:
        self.writes.append(write_derivations)
        assert platform == AMD64
        assert isinstance(package_set, NixFiles)
        return HostileEvaluation(self, package_set.path.name)


class HostileEvaluation:
    def __init__(self, set_: HostileSet, identity: str) -> None:
        self._set = set_
        self._identity = identity

    async def names(self, sets: Sequence[AttributePath]) -> list[list[str] | None]:
        return [self._set.names_of.get(path) for path in sets]

    async def describe(
        self,
        paths: Sequence[AttributePath],
        report: Callable[[Reported], None],
        failures: int,  # noqa: ARG002
    ) -> int:
        self._set.begun.set()
        self._set.stops_after -= 1
        if self._set.stops_after < 0:
            raise EvaluationFailed((), "interrupted")
        if self._set.slow == self._identity:
            await asyncio.Event().wait()
        for path in paths:
            about = dict.fromkeys(("pname", "version", "homepage", "mainProgram"), "")
            lists: dict[str, list[str]] = {
                name: [] for name in ("licences", "programs", "platforms", "outputs")
            }
            broken = {"status": "broken", "name": "", "attribute": path[-1], "position": []}
            entry = {
                "path": path,
                "kind": "set" if path[-1] == "set" else "package",
                "recurse": path[-1] == "set",
                "items": [] if path[-1] == "set" else [broken],
                "about": {**about, **lists, "description": DESCRIPTION},
            }
            report(Reported(path, json.dumps(entry).encode()))
        self._set.described.set()
        return 0


def index(set_: HostileSet, records: RecordStore) -> PackageIndex:
    pins = Pins(set_, records, 3600)
    return PackageIndex(pins, set_, set_, AMD64, records, "program", processes=1)  # type: ignore[arg-type]


async def indexed(set_: HostileSet, records: RecordStore) -> PackageSearch:
    one = index(set_, records)
    await one.evaluate(PIN)
    assert one.progress is not None
    assert one.progress.is_complete
    return await one.names("latest")


async def test_texts_of_a_state_are_bounded(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "_MOST_TEXT", 10 * (len(DESCRIPTION) + 64))
    monkeypatch.setattr(index_records, "PART", 7)
    found = await indexed(HostileSet({(): [f"p{number}" for number in range(100)]}), records)
    assert len(found) == 100
    assert 1 <= sum(package.description != "" for package in found) <= 10


async def test_stored_parts_of_a_state_are_bounded(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_LARGEST_STATE", 2000, raising=False)
    monkeypatch.setattr(index_records, "PART", 10)
    set_ = HostileSet({(): [f"p{number}" for number in range(500)]})
    assert len(await indexed(set_, records)) == 500
    sizes = [
        len(await records.get(PACKAGE_DETAILS, record.key) or b"")
        async for record in records.scan(PACKAGE_DETAILS)
    ]
    assert 1 <= sum(sizes) <= 2000


async def test_texts_are_bounded_in_an_index_that_continues(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_records, "_MOST_TEXT", 10 * (len(DESCRIPTION) + 64))
    monkeypatch.setattr(index_records, "PART", 7)
    set_ = HostileSet({(): [f"p{number}" for number in range(100)]})
    for stop in range(1, 15):
        set_.stops_after = stop
        with suppress(EvaluationFailed):
            await index(set_, records).evaluate(PIN)
    found = await index(set_, records).names("latest")
    assert 1 <= sum(package.description != "" for package in found) <= 10


async def test_derivations_of_a_small_set_with_a_large_one_inside_are_not_written(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_FEW", 10)
    set_ = HostileSet({(): ["p", "set"], ("set",): [f"p{number}" for number in range(20)]})
    assert len(await indexed(set_, records)) == 21
    # The list of names, and the two sets.
    assert set_.writes == [False, True, False]


async def test_a_slow_state_does_not_keep_another_one_waiting(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_TURN", 0.1, raising=False)
    monkeypatch.setattr(package_index, "_COOLDOWN", 0)
    set_ = HostileSet({(): ["p"]})
    set_.slow = "latest"
    one = index(set_, records)
    running = asyncio.ensure_future(one.run())
    try:
        async with asyncio.timeout(30):  # bounds a hang
            await set_.begun.wait()
            one.want(Pin("fake:", "other", "other"))
            await set_.described.wait()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def search(description: str) -> PackageSearch:
    return PackageSearch(FoundPackage(f"p{number}", "p", description=description) for number in range(100))


def test_a_search_looks_at_a_bounded_number_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(f"zq{number}" for number in range(50))
    monkeypatch.setattr(package_search, "_MOST_LOOKED_AT", 10, raising=False)
    assert len(search(words).search("zq", 100)) == 10
    monkeypatch.setattr(package_search, "_MOST_WITH_WORD", 5, raising=False)
    assert len(search(words).search("zq", 100)) == 5


def test_the_number_of_distinct_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_search, "_MOST_DISTINCT", 20, raising=False)
    words = [f"zq{number:02}" for number in range(50)]
    found = search(" ".join(words))
    assert sum(bool(found.search(f"{word} {word}", 1)) for word in words) <= 20


def planted(**fields: object) -> bytes:
    """The record of an index of this source, written by another program."""
    version = fields.pop("version", "2")
    header = {"source": "fake:", "revision": "planted", "created": None, "rounds": [[[[], ["p"]]]], **fields}
    names = zstandard.compress(json.dumps({**header, "is_complete": True}).encode())
    rows = zstandard.compress(json.dumps({"path": ["p"], "kind": "package", "version": version}).encode())
    return HEADER + b"p\n\n%016x" % len(names) + names + rows


async def versions(records: RecordStore) -> list[PackageVersion]:
    one = index(HostileSet({(): ["p"]}), records)
    await one.names("latest")
    found = await one.versions("latest", "p")
    assert await one.known_versions(["p"]) == ({"p": found} if found else {})
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"created": 10**400},
        {"created": 10**14},
        {"revision": "x" * 100_000},
        {"revision": "two\nlines"},
        {"rounds": [[[[], ["p"]], [["x" * 100_000], ["p"]]]]},
        {"rounds": [[[[], ["p", "x" * 100_000]]]]},
        {"version": "x" * 100_000},
        {"rounds": [[[[], ["p"]], [[RESERVED], [f"m{number}" for number in range(1000)]]]]},
    ],
    ids=["endless date", "no date", "revision", "line break", "path", "name", "version", "meta-packages"],
)
async def test_planted_values_that_no_index_has(fields: dict[str, object], records: RecordStore) -> None:
    """The page of a package, and the error about an unknown tag, show the versions in all records of the storage."""
    await records.put(PACKAGES, "ab" * 32, planted())
    assert [found.revision for found in await versions(records)] == ["planted"]
    await records.put(PACKAGES, "ab" * 32, planted(**fields))
    assert await versions(records) == []


async def test_any_number_of_planted_records_is_neither_read_nor_kept_in_memory(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        await records.put(PACKAGES, f"{number:02x}" * 32, planted())
    read: list[str] = []
    get = records.get

    async def counted(kind: str, key: str) -> bytes | None:
        if kind == PACKAGES:
            read.append(key)
        return await get(kind, key)

    monkeypatch.setattr(records, "get", counted)
    one = index(HostileSet({(): ["p"]}), records)
    await one.names("latest")
    assert len(read) <= 25


def test_the_versions_of_a_state_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "_MOST_VERSIONS", 5000, raising=False)
    rows = [Row(path=(f"p{number}",), kind="package", version=f"{number:0200}") for number in range(100)]
    header = Header(source="", revision="x", created=None, rounds=[[]])
    state = StateVersions(header, rows, 0)
    known = [row for row in rows if state.of(row.path) == row.version]
    assert 10 <= len(known) <= 20
    assert all(state.of(row.path) == "" for row in rows if row not in known)


def test_versions_count_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "_MOST_TEXT", 10 * (200 + 64))
    state = StateIndex.listed("", PIN, [((), [f"p{number}" for number in range(100)])])
    state.add_rows(
        Row(path=(f"p{number}",), kind="package", version=f"{number:0200}") for number in range(100)
    )
    assert 1 <= sum(row.version != "" for row in state.rows.values()) <= 10


async def test_a_request_holds_few_parts_in_memory_at_once(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_records, "PART", 1)
    names = [f"p{number}" for number in range(40)]
    one = index(HostileSet({(): names}), records)
    await one.evaluate(PIN)
    held = most_held = 0
    get = records.get

    async def counted(kind: str, key: str) -> bytes | None:
        nonlocal held, most_held
        held += 1
        most_held = max(held, most_held)
        content = await get(kind, key)
        held -= 1
        return content

    monkeypatch.setattr(records, "get", counted)
    await asyncio.gather(*(one.find(PIN, AMD64, name) for name in names))
    assert 1 < most_held <= 8


class Rows(dict[AttributePath, Row]):
    """Counts how often somebody looks at all of them."""

    looks = 0

    def values(self) -> Any:  # noqa: ANN401 -- the type of a built-in class
        self.looks += 1
        return super().values()


def test_the_progress_of_an_index_costs_the_same_with_each_part() -> None:
    names = [f"p{number}" for number in range(500)]
    state = StateIndex.listed("key", PIN, [((), names)])
    rows = state.__dict__["rows"] = Rows()
    state.add_rows([])
    begun = rows.looks
    for number, name in enumerate(reversed(names)):
        state.add_rows([Row(path=(name,), kind="failed" if number % 3 else "package", reason=name)])
        assert state.progress.evaluated == number + 1
    assert rows.looks == begun
    # Again: the same, another reason, and a failure that is none any more.
    state.add_rows([Row(path=(name,), kind="failed", reason="again") for name in ("p498", "p497", "p10")])
    state.add_rows([Row(path=(name,), kind="package") for name in ("p1", "p0", "p100")])
    again = StateIndex("key", state.header, lambda: list(rows.values()))
    assert state.progress == again.progress
    assert state.progress.failed == sum(row.kind == "failed" for row in rows.values())
    assert len(state.progress.failures) == 100
    assert ("p10", "again") in state.progress.failures
    assert "p100" not in dict(state.progress.failures)


def rows_in_memory() -> int:
    return sum(type(one) is Row for one in gc.get_objects())


async def test_an_index_that_no_record_can_hold_keeps_no_rows(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    before = rows_in_memory()
    monkeypatch.setattr(index_records, "_LARGEST_HEADER", 100)
    one = index(HostileSet({(): [f"p{number}" for number in range(200)]}), records)
    await one.evaluate(PIN)
    gc.collect()
    assert rows_in_memory() == before
    assert (await one.state_progress("latest")).evaluated == 200
    (found,) = (await one.names("latest")).search("p17", 1)
    assert found.description == DESCRIPTION


async def test_names_of_commas_end_no_index(records: RecordStore) -> None:
    names = [f"p{number}{',' * 250}" for number in range(2500)]
    one = index(HostileSet({(): ["hello", *names]}), records)
    await one.evaluate(PIN)
    assert [package.name for package in (await one.names("latest")).search("hello", 1)] == ["hello"]


@pytest.mark.parametrize("created", [10**400, -(10**20)], ids=["late", "early"])
def test_a_record_with_a_date_that_no_calendar_has_counts_as_missing(created: int) -> None:
    listed = StateIndex.listed("key", PIN, [((), ["p"])])
    header = json.dumps({**listed.header.model_dump(), "created": created}).encode()
    parts = [zstandard.compress(text) for text in (header, b"")]
    content = b"".join((index_records.HEADER, b"p\n\n%016x" % len(parts[0]), *parts))
    assert decode(partial(index_records.decode_versions, modified=0), content) is None


def test_few_names_are_compared_with_the_interpreter_lock_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    extract = process.extract

    def counted(query: str, choices: Sequence[str], **options: Any) -> Any:  # noqa: ANN401 -- as there
        compared.append(len(choices))
        return extract(query, choices, **options)

    names = [f"p{number:06}" for number in range(10_000)]
    best = [name for name, _, _ in extract("p00999x", names, scorer=OSA.normalized_similarity, limit=3)]
    monkeypatch.setattr(process, "extract", counted)
    assert list(NearNames("", names).of("p00999x")) == best
    assert sum(compared) == len(names)
    assert max(compared) <= 2000
