"""The package index: made in parts, resumed, shared, bounded, and read by requests. With a fake evaluation and a real storage."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from nixery.builds import index_records, package_index
from nixery.builds.index_records import HEADER, StateIndex, decode_index, decode_part
from nixery.builds.package_index import PackageIndex
from nixery.builds.pins import Pins
from nixery.errors import (
    EvaluationFailed,
    NixUnusable,
    PackageSetChanged,
    Reason,
    StorageError,
    StorageFull,
    TooBusy,
    UnavailablePackage,
)
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.nix.indexing import AttributePath, Reported
from nixery.nix.packages import NixFiles, Package, PackageSet
from nixery.nix.realisation import Nix
from nixery.sources.source import PackageSource, Pin, Reference
from nixery.storage.records import KINDS, PACKAGE_DETAILS, PACKAGES, RecordStore, decode
from tests.support.event_loop import eventually, until_done

TEXT = "of a package"
HASH = "0" * 31


def store_path(name: str) -> str:
    return f"/nix/store/{HASH}{len(name) % 10}-{name}"


def entry(path: AttributePath, **about: Any) -> bytes:  # noqa: ANN401 -- fields of JSON
    """A line of ``packages.nix`` for a package."""
    name = about.pop("name", path[-1])
    outputs = about.pop("outputs", {"out": store_path(name)})
    texts = {"pname": name, "version": "2.0", "description": TEXT, "homepage": "", "mainProgram": ""}
    lists: Mapping[str, list[str]] = {"licences": [], "programs": [], "platforms": []}
    described = {**texts, **lists, **about, "outputs": [{"name": n, "path": p} for n, p in outputs.items()]}
    item = {
        "status": "available",
        "name": "",
        "attribute": ".".join(path),
        "position": [],
        "derivation": store_path(f"{name}.drv"),
        "outputs": outputs,
        **{field: described[field] for field in ("pname", "version", "description", "licences")},
        "mainProgram": None,
        "priority": None,
        "fhs": False,
    }
    found = {"path": path, "kind": "package", "recurse": False, "items": [item], "about": described}
    return json.dumps(found, sort_keys=True).encode()


def package_set(path: AttributePath) -> bytes:
    """A line of ``packages.nix`` for a set that asks to be entered."""
    return json.dumps(
        {"path": path, "kind": "set", "recurse": True, "items": [], "about": None}, sort_keys=True
    ).encode()


class Source:
    """Stands in for ``PackageSource`` and ``Nix``; each tag has a separate pin."""

    description = "fake:"

    def __init__(self, sets: Mapping[AttributePath, Sequence[str]] | None = None) -> None:
        self.sets: dict[AttributePath, Sequence[str]] = {(): ["git"], **(sets or {})}
        self.lines: dict[AttributePath, bytes] = {}
        self.failing: dict[AttributePath, str] = {}
        self.unlisted: set[AttributePath] = set()
        self.listed: list[Sequence[AttributePath]] = []
        self.described: list[AttributePath] = []
        self.allowed: list[int] = []
        self.are_moving = False
        self.is_broken = self.is_unusable = self.has_changed = False
        self.now = 0.0
        self.running = self.most_running = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.before_part: Callable[[], None] = lambda: None
        self.opened: list[str] = []
        self.wrote_derivations = False

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=self.are_moving, rule=tag if tag.startswith("commit") else "")

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002 -- any
        return True

    async def resolve(self, reference: Reference) -> Pin:
        return Pin("fake:", reference.name, reference.name, created=len(reference.name))

    async def require_reachable(self, reference: Reference) -> None:
        raise NotImplementedError(reference)

    async def confirm(self, pin: Pin) -> None:  # noqa: ARG002 -- one state
        if self.has_changed:
            raise PackageSetChanged

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[PackageSet]:
        self.opened.append(pin.identity)
        yield NixFiles(Path("/nowhere") / pin.identity, self_contained=True)

    async def indexing(
        self, platform: Platform, package_set: PackageSet, *, write_derivations: bool = False
    ) -> Source:
        assert (platform, isinstance(package_set, NixFiles)) == (AMD64, True)
        self.wrote_derivations = write_derivations
        return self

    async def names(self, sets: Sequence[AttributePath]) -> list[list[str] | None]:
        self.listed.append(sets)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        await self.may_end.wait()
        self.running -= 1
        if self.is_unusable:
            raise NixUnusable("Nix is broken")
        if self.is_broken or not self.unlisted.isdisjoint(sets):
            raise EvaluationFailed((), "broken")
        return [list(self.sets[path]) if path in self.sets else None for path in sets]

    async def describe(
        self, paths: Sequence[AttributePath], report: Callable[[Reported], None], failures: int
    ) -> int:
        self.before_part()
        self.allowed.append(failures)
        failed = 0
        for path in paths:
            self.described.append(path)
            error = self.failing.get(path)
            failed += error is not None
            if error is not None:
                report(Reported(path, None, error))
            elif path in self.lines:
                report(Reported(path, self.lines[path]))
            else:
                report(Reported(path, package_set(path) if path in self.sets else entry(path)))
        await asyncio.sleep(0)
        return failed


def index(source: Source, records: RecordStore, **arguments: Any) -> PackageIndex:  # noqa: ANN401 -- of the constructor
    pins = Pins(cast("PackageSource", source), records, 3600)
    options: dict[str, Any] = {"processes": 1, "failure_time_to_live": 30, "clock": lambda: source.now}
    nix = cast("Nix", source)
    return PackageIndex(
        pins, cast("PackageSource", source), nix, AMD64, records, "program", **{**options, **arguments}
    )


def pin(tag: str = "latest") -> Pin:
    return Pin("fake:", tag, tag, created=len(tag))


async def keys(records: RecordStore, kind: str) -> list[str]:
    return [record.key async for record in records.scan(kind)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "PART", 2)


# ---- Making an index


async def test_an_index_has_the_set_named_sets_and_sets_that_ask(records: RecordStore) -> None:
    source = Source(
        {
            (): ["git", "python3Packages", "marked", "unmarked"],
            ("python3Packages",): ["numpy"],
            ("marked",): ["inside", "deeper"],
            ("marked", "deeper"): ["below"],
            ("unmarked",): ["hidden"],
        }
    )
    unmarked = {"path": ["unmarked"], "kind": "set", "recurse": False, "items": [], "about": None}
    source.lines[("unmarked",)] = json.dumps(unmarked).encode()
    one = index(source, records, sets=[("python3Packages",), ("perlPackages",)])
    await one.evaluate(pin())
    names = {package.name: package.attribute for package in await one.names("latest")}
    assert names == {
        "git": "git",
        "python3packages.numpy": "python3Packages.numpy",
        "marked.inside": "marked.inside",
        "marked.deeper.below": "marked.deeper.below",
    }
    assert one.progress is not None
    assert (one.progress.is_complete, one.progress.attributes, one.progress.evaluated) == (True, 8, 8)


async def test_names_are_searchable_before_the_details(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert (package.version, source.described) == ("", [])
    found = await one.attribute("latest", "git")
    assert found is not None
    assert found[1] is None
    await one.evaluate(pin())
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert (package.version, package.description) == ("2.0", TEXT)


@pytest.mark.usefixtures("small_parts")
async def test_searches_see_parts_while_others_are_evaluated(records: RecordStore) -> None:
    source = Source({(): [f"p{n}" for n in range(8)]})
    one = index(source, records)
    seen: list[int] = []

    def look() -> None:
        state = one._recent[pin()]
        seen.append(sum(bool(package.version) for package in state.search))
        assert not state.progress.is_complete

    source.before_part = look
    await one.evaluate(pin())
    assert seen[0] == 0
    assert 0 < seen[-1] < 8


@pytest.mark.parametrize(
    ("names", "setting", "written"),
    [(3, None, True), (2001, None, False), (3, False, False), (2001, True, True)],
)
async def test_derivations_of_small_sets_are_written_unless_the_operator_decides(
    records: RecordStore, *, names: int, setting: bool | None, written: bool
) -> None:
    source = Source({(): [f"name{number}" for number in range(names)]})
    pins = Pins(source, records, 3600)
    index = PackageIndex(pins, source, source, AMD64, records, "program", write_derivations=setting)  # type: ignore[arg-type]
    await index.evaluate((await pins.pin("latest")).pin)
    assert source.wrote_derivations is written


async def test_a_large_set_within_a_small_one_has_no_derivations_written(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_FEW", 4)
    source = Source({(): ["git", "large"], ("large",): [f"p{number}" for number in range(8)]})
    one = index(source, records)
    listed: list[bool] = []
    source.before_part = lambda: listed.append(source.wrote_derivations)
    await one.evaluate(pin())
    assert listed == [True, False]


async def test_a_failed_attribute_is_listed_with_its_reason(records: RecordStore) -> None:
    source = Source({(): ["git", "hevm"]})
    source.failing[("hevm",)] = "stack overflow"
    one = index(source, records)
    await one.evaluate(pin())
    package = (await one.names("latest")).get("hevm")
    assert package is not None
    assert package.reason == "stack overflow"
    assert one.progress is not None
    assert (one.progress.failed, one.progress.failures) == (1, (("hevm", "stack overflow"),))
    assert await one.find(pin(), AMD64, "hevm") is None


@pytest.mark.usefixtures("small_parts")
async def test_failures_are_bounded_for_a_state(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_MOST_FAILURES", 3)
    source = Source({(): [f"p{n}" for n in range(8)]})
    source.failing = {(f"p{n}",): "fails" for n in range(8)}
    await index(source, records).evaluate(pin())
    assert source.allowed == [3, 1, 0, 0]


async def test_only_some_failures_are_in_the_progress(records: RecordStore) -> None:
    source = Source({(): [f"p{n}" for n in range(300)]})
    source.failing = {(f"p{n}",): "fails" for n in range(300)}
    one = index(source, records)
    await one.evaluate(pin())
    assert one.progress is not None
    assert (one.progress.failed, len(one.progress.failures)) == (300, 100)


async def test_a_set_that_cannot_be_listed_is_asked_once(records: RecordStore) -> None:
    source = Source({(): ["git", "one", "two"], ("one",): ["inside"], ("two",): ["inside"]})
    source.unlisted = {("one",)}
    one = index(source, records)
    async with asyncio.timeout(10):
        await one.evaluate(pin())
    assert {package.name for package in await one.names("latest")} == {"git", "two.inside"}
    assert source.listed.count([("one",)]) == 1


async def test_a_set_within_itself_ends(records: RecordStore) -> None:
    source = Source({("self",) * depth: ["self"] for depth in range(10)})
    await index(source, records).evaluate(pin())
    assert max(map(len, source.described)) == 4


async def test_attributes_are_bounded(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (package_index, index_records):
        monkeypatch.setattr(module, "MOST_ATTRIBUTES", 10)
    names = [f"p{n}" for n in range(9)]
    source = Source(
        {(): ["small", "large"], ("small",): names[:3], ("large",): names, ("small", "p1"): names}
    )
    one = index(source, records)
    await one.evaluate(pin())
    assert len(source.described) == 5
    assert await one.find(pin(), AMD64, "large.p1") is None
    source.sets[()] = [*names, *map(str.upper, names)]
    with pytest.raises(EvaluationFailed, match="the package set has 18 attributes; 10 is the limit"):
        await one.names("other")


async def test_texts_of_an_index_are_bounded(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "_MOST_TEXT", 5 * (len(TEXT) + len("2.0") + 2 * 64))
    one = index(Source({(): [f"p{n}" for n in range(20)]}), records)
    await one.evaluate(pin())
    described = [package for package in await one.names("latest") if package.description]
    assert len(described) == 5
    found = await one.attribute("latest", "p19")
    assert found is not None
    assert found[1] is not None
    assert (found[0].description, found[1].description) == ("", TEXT)


async def test_aliases_point_to_the_package_with_its_own_name(records: RecordStore) -> None:
    source = Source({(): ["a", "git", "gitAndTools", "two"], ("gitAndTools",): ["git"]})
    source.lines = {(alias,): entry((alias,), name="git") for alias in ("a", "two")}
    one = index(source, records)
    await one.evaluate(pin())
    aliases = {package.name: package.alias_of for package in await one.names("latest")}
    assert aliases == {"git": "", "a": "git", "two": "git", "gitandtools.git": "git"}


async def test_packages_without_outputs_are_no_aliases(records: RecordStore) -> None:
    source = Source({(): ["a", "b"]})
    source.lines = {(name,): entry((name,), outputs={}) for name in "ab"}
    one = index(source, records)
    await one.evaluate(pin())
    assert not any(package.alias_of for package in await one.names("latest"))


async def test_names_that_image_names_cannot_have_are_found_by_their_spelling(records: RecordStore) -> None:
    source = Source({(): ["libstdc++6", "ShellCheck", "_1password", "café", "two\nlines", "x" * 256]})
    one = index(source, records)
    await one.evaluate(pin())
    names = {package.name for package in await one.names("latest")}
    assert names == {"libstdc__2b__2b6", "shellcheck", "1password"}


# ---- Resuming and sharing


async def interrupt(source: Source, records: RecordStore, after: int) -> None:
    """Evaluate a set, and fail when some attributes are described."""

    def fail() -> None:
        if len(source.described) == after:
            raise NixUnusable("this machine is shutting down")

    source.before_part = fail
    with pytest.raises(NixUnusable):
        await index(source, records).evaluate(pin())
    source.before_part = lambda: None


@pytest.mark.usefixtures("small_parts")
async def test_an_interrupted_run_continues_with_the_missing_parts(records: RecordStore) -> None:
    names = [f"p{n}" for n in range(10)]
    source = Source({(): names})
    await interrupt(source, records, after=6)
    one = index(source, records)
    await one.evaluate(pin())
    assert sorted(source.described) == [(name,) for name in names]
    assert len(source.listed) == 1
    assert len(await one.names("latest")) == 10


@pytest.mark.usefixtures("small_parts")
async def test_an_interruption_in_a_later_round_loses_no_set(records: RecordStore) -> None:
    source = Source({(): ["a", "marked"], ("marked",): ["b", "deeper"], ("marked", "deeper"): ["c"]})
    await interrupt(source, records, after=4)
    one = index(source, records)
    await one.evaluate(pin())
    assert len(source.described) == len(set(source.described)) == 5
    assert {package.name for package in await one.names("latest")} == {"a", "marked.b", "marked.deeper.c"}


@pytest.mark.usefixtures("small_parts")
async def test_two_servers_on_one_storage_share_the_work(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each begins with another part; by chance, it could be the same one.
    starts = iter([0, 10])
    monkeypatch.setattr("nixery.builds.package_index.secrets.randbelow", lambda _: next(starts))
    names = [f"p{n:02}" for n in range(40)]
    first, second = Source({(): names}), Source({(): names})
    one, other = index(first, records), index(second, records)
    await one.names("latest")
    await asyncio.gather(one.evaluate(pin()), other.evaluate(pin()))
    assert {*first.described, *second.described} == {(name,) for name in names}
    # A part that both have in progress is evaluated twice; without sharing, all of them would be.
    assert len(first.described) + len(second.described) < 2 * len(names)
    assert second.listed == []
    for each in (one, other):
        assert {package.version for package in await each.names("latest")} == {"2.0"}


async def test_an_index_survives_a_restart(records: RecordStore) -> None:
    source = Source()
    await index(source, records).evaluate(pin())
    one = index(source, records)
    await one.evaluate(pin())
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert package.version == "2.0"
    assert (len(source.listed), len(source.described)) == (1, 1)


async def test_several_processes_share_the_parts_of_a_state(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_records, "PART", 1)
    source = Source({(): [f"p{n}" for n in range(20)]})
    await index(source, records, processes=4).evaluate(pin())
    assert len(source.described) == len(set(source.described)) == 20


# ---- Defects of the storage


@pytest.mark.parametrize("kind", [PACKAGES, PACKAGE_DETAILS])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"torn",
        HEADER,
        HEADER + b"git\n\nnot a number",
        HEADER + b"git\n\n" + b"f" * 16,
        zstandard.compress(b""),
        zstandard.compress(b"one line"),
        zstandard.compress(b"\xff\n{}\n[]"),
        zstandard.compress(b'{"error": 5}\n{"error": ' + b"[" * 5000),
        zstandard.compress(b'{"error"\n{"error": "\\ud800"}'),
    ],
    ids=[
        "empty",
        "no header",
        "header alone",
        "no length",
        "wrong length",
        "no lines",
        "one line",
        "no text",
        "deep",
        "no error",
    ],
)
async def test_torn_records_are_made_again_or_say_nothing(
    records: RecordStore, kind: str, content: bytes
) -> None:
    source = Source({(): ["git", "jq"]})
    await index(source, records).evaluate(pin())
    (key,) = await keys(records, kind)
    await records.put(kind, key, content)
    one = index(source, records)
    assert await one.find(pin(), AMD64, "git") is None
    # So that the parts are read again.
    for record in await keys(records, PACKAGES):
        await records.delete(PACKAGES, record)
    await index(source, records).evaluate(pin())
    assert {package.name for package in await one.names("latest")} == {"git", "jq"}


async def test_torn_rows_are_read_again_from_the_parts(records: RecordStore) -> None:
    source = Source()
    await index(source, records).evaluate(pin())
    (key,) = await keys(records, PACKAGES)
    content = await records.get(PACKAGES, key)
    assert content is not None
    await records.put(PACKAGES, key, content[:-4])
    one = index(source, records)
    await one.evaluate(pin())
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert package.version == "2.0"
    assert source.described == [("git",)]


@pytest.mark.parametrize("date", [10**15, 10**400], ids=["after the calendar", "no number of seconds"])
async def test_a_record_with_an_impossible_date_is_torn(records: RecordStore, date: int) -> None:
    """Otherwise each page that shows versions would fail, and each answer about an unknown tag."""
    source = Source()
    planted = StateIndex.listed("0" * 64, pin(), [((), ["git"])])
    planted.header.created = date
    await records.put(PACKAGES, planted.key, planted.encoded())
    one = index(source, records)
    await one.evaluate(pin("latest"))
    assert [each.created for each in await one.versions("latest", "git")] == [len("latest")]
    assert decode(decode_index, planted.encoded()) is None


def test_a_record_that_decompresses_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_records, "_LARGEST_PART", 1000)
    with pytest.raises(ValueError, match="1001 bytes after decompression; 1000 is the limit"):
        decode_part(zstandard.compress(bytes(1001)))
    # A frame need not say how large its content is.
    with pytest.raises(ValueError, match="limit"):
        decode_part(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10)))


async def test_a_copy_does_not_wait_for_the_rows_of_another_index() -> None:
    """The event loop uses the copy; a client's request may have a thread read the rows of another state."""
    copy = StateIndex.listed("0" * 64, pin(), [((), ["git"])]).copy()
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> tuple[()]:
        begun.set()
        may_end.wait(60)
        return ()

    other = StateIndex("1" * 64, copy.header, slow)
    reading = asyncio.ensure_future(asyncio.to_thread(lambda: other.rows))
    try:
        await asyncio.to_thread(begun.wait, 60)
        async with asyncio.timeout(10):
            assert (await asyncio.to_thread(lambda: copy.progress)).evaluated == 0
    finally:
        may_end.set()
        await reading


async def test_a_set_without_names_is_stored(records: RecordStore) -> None:
    source = Source({(): []})
    await index(source, records).evaluate(pin())
    (key,) = await keys(records, PACKAGES)
    assert decode_index(await records.get(PACKAGES, key) or b"").header.is_complete
    assert len(await index(source, records).names("latest")) == 0
    assert len(source.listed) == 1


async def test_the_index_works_with_a_full_storage(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = index(Source(), records)
    await one._pins.pin("latest")

    async def put(*_: object) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(records, "put", put)
    await one.evaluate(pin())
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert package.version == "2.0"
    assert await one.find(pin(), AMD64, "git") is None


async def test_a_part_larger_than_its_kind_is_searched_and_left_to_evaluations(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**KINDS, PACKAGE_DETAILS: replace(KINDS[PACKAGE_DETAILS], largest=100)}
    monkeypatch.setattr("nixery.storage.records.KINDS", small)
    one = index(Source(), records)
    await one.evaluate(pin())
    package = (await one.names("latest")).get("git")
    assert package is not None
    assert package.version == "2.0"
    assert await keys(records, PACKAGE_DETAILS) == []
    assert await one.find(pin(), AMD64, "git") is None


async def test_a_storage_that_cannot_be_read_fails_the_run(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = index(Source(), records)
    await one.names("latest")

    async def get(*_: object) -> None:
        raise StorageError("cannot be read")

    monkeypatch.setattr(records, "get", get)
    with pytest.raises(StorageError):
        await one.evaluate(pin())


# ---- Changes and bounds of states


async def test_a_state_that_changes_during_the_run_writes_nothing(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await one.names("latest")

    def change() -> None:
        source.has_changed = True

    source.before_part = change
    with pytest.raises(PackageSetChanged):
        await one.evaluate(pin())
    assert await keys(records, PACKAGE_DETAILS) == []
    (key,) = await keys(records, PACKAGES)
    assert not decode_index(await records.get(PACKAGES, key) or b"").header.is_complete


async def test_old_complete_indexes_are_evicted_with_their_parts(records: RecordStore) -> None:
    source = Source()
    for number in range(8):
        await index(source, records).evaluate(pin(f"tag-{number}"))
    assert len(await keys(records, PACKAGES)) == len(await keys(records, PACKAGE_DETAILS)) == 5
    one = index(source, records)
    assert [await one._stored(pin(f"tag-{number}")) is not None for number in range(8)] == [False] * 3 + [
        True
    ] * 5


async def test_searches_of_commits_evict_no_complete_index(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await one.evaluate(pin())
    for number in range(20):
        await one.names(f"commit-{number}")
    assert len(await keys(records, PACKAGES)) == 6
    assert len(await keys(records, PACKAGE_DETAILS)) == 1
    again = index(source, records)
    await again.evaluate(pin())
    assert source.described == [("git",)]


async def test_other_branches_do_not_evict_the_index_of_the_default_tag(records: RecordStore) -> None:
    one = index(Source(), records)
    await one.names("latest")
    await one.evaluate(pin())
    for number in range(8):
        await one.names(f"branch-{number}")
        await one.evaluate(pin(f"branch-{number}"))
    assert len(await keys(records, PACKAGES)) == len(await keys(records, PACKAGE_DETAILS)) == 5
    found = await index(Source(), records).attribute("latest", "git")
    assert found is not None
    assert found[1] is not None


async def test_searches_of_other_states_do_not_displace_the_default_tag_from_memory(
    records: RecordStore,
) -> None:
    one = index(Source(), records)
    latest = await one.names("latest")
    for _ in range(2):
        for number in range(4):
            await one.names(f"commit-{number}")
    assert await one.names("latest") is latest


async def test_the_default_tag_comes_first_then_the_newest_of_a_bounded_number_of_others(
    records: RecordStore,
) -> None:
    source = Source()
    one = index(source, records)
    for number in range(10):
        one.want(pin(f"tag-{number}"))
        one.want(pin(f"tag-{number}"))
    running = asyncio.ensure_future(one.run())
    await eventually(lambda: one.progress and one.progress.revision == "tag-6" and one.progress.is_complete)
    assert list(dict.fromkeys(source.opened)) == ["latest", "tag-9", "tag-8", "tag-7", "tag-6"]
    one.want(pin("moved"), is_default=True)
    for number in range(10, 20):
        one.want(pin(f"tag-{number}"))
    await eventually(lambda: one.progress and one.progress.revision == "tag-16" and one.progress.is_complete)
    running.cancel()
    assert list(dict.fromkeys(source.opened))[5:] == ["moved", "tag-19", "tag-18", "tag-17", "tag-16"]


async def test_commits_that_clients_choose_are_not_wanted(records: RecordStore) -> None:
    one = index(Source(), records)
    one._pins.watch(one.want)
    await one.names("commit-1")
    assert list(one._waiting) == []
    await one.names("nixos-unstable")
    assert list(one._waiting) == [pin("nixos-unstable")]


async def test_a_complete_state_is_not_wanted(records: RecordStore) -> None:
    one = index(Source(), records)
    await one.evaluate(pin())
    one.want(pin())
    assert list(one._waiting) == []


async def test_a_failed_run_is_tried_again_unless_the_package_set_is_broken(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_COOLDOWN", 0)
    source = Source()
    source.is_unusable = True
    one = index(source, records, failure_time_to_live=0)
    running = asyncio.ensure_future(one.run())
    await eventually(lambda: len(source.listed) >= 3)
    source.is_unusable = False
    await eventually(lambda: one.progress and one.progress.is_complete)
    source.is_broken = True
    one.want(pin("broken"))
    await eventually(lambda: not one._waiting and "broken" in source.opened)
    one.want(pin("broken-too"))
    await eventually(lambda: "broken-too" in source.opened)
    assert source.opened.count("broken") == 1
    running.cancel()


async def test_a_default_tag_that_cannot_be_pinned_does_not_end_the_run(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    one = index(source, records)

    async def fail(tag: str) -> None:  # noqa: ARG001 -- any
        raise NixUnusable("no source")

    monkeypatch.setattr(one._pins, "pin", fail)
    running = asyncio.ensure_future(one.run())
    one.want(pin("other"))
    await eventually(lambda: one.progress and one.progress.is_complete)
    running.cancel()


# ---- Requests


async def test_a_name_that_the_set_does_not_have_is_missing_with_near_names(records: RecordStore) -> None:
    one = index(Source({(): ["git", "gitk", "python3Packages"]}), records)
    await one.evaluate(pin())
    (item,) = await one.find(pin(), AMD64, "gitt") or ()
    assert isinstance(item, UnavailablePackage)
    assert (item.name, item.reason, item.near_names[0]) == ("gitt", Reason.MISSING, "git")


async def test_what_is_not_in_the_index_is_left_to_an_evaluation(records: RecordStore) -> None:
    one = index(Source({(): ["git", "python3Packages"]}), records)
    assert await one.find(pin(), AMD64, "git") is None
    await one.evaluate(pin())
    assert await one.find(pin(), AMD64, "python3packages.numpy") is None
    assert await one.find(pin(), AMD64, "git.dev") is None
    assert await one.find(pin(), ARM64, "git") is None
    assert await one.find(pin("other"), AMD64, "git") is None


@pytest.fixture
def existing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The store paths that exist."""
    paths: set[str] = set()
    monkeypatch.setattr("nixery.builds.package_index.os.path.lexists", lambda path: str(path) in paths)
    return paths


async def test_a_package_needs_its_derivation_or_all_its_outputs(
    records: RecordStore, existing: set[str]
) -> None:
    one = index(Source(), records)
    await one.evaluate(pin())
    assert await one.find(pin(), AMD64, "git") is None
    existing.add(store_path("git"))
    (package,) = await one.find(pin(), AMD64, "git") or ()
    assert isinstance(package, Package)
    assert (package.is_realised, package.requested_name, package.version) == (True, "git", "2.0")
    existing.add(store_path("git.drv"))
    (package,) = await one.find(pin(), AMD64, "git") or ()
    assert isinstance(package, Package)
    assert not package.is_realised


async def test_an_image_of_many_packages_reads_few_parts_at_once(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part may have 8 MB."""
    monkeypatch.setattr(index_records, "PART", 1)
    names = [f"package{number}" for number in range(40)]
    one = index(Source({(): names}), records)
    await one.evaluate(pin())
    held = most = 0
    get, parse = records.get, index_records.attribute_of

    async def counted(kind: str, key: str) -> bytes | None:
        nonlocal held, most
        content = await get(kind, key)
        held += kind == PACKAGE_DETAILS
        most = max(most, held)
        return content

    def parsed(content: bytes | None, path: AttributePath, number: int) -> object:
        nonlocal held
        held -= 1
        return parse(content, path, number)

    monkeypatch.setattr(records, "get", counted)
    monkeypatch.setattr("nixery.builds.package_index.attribute_of", parsed)
    found = await asyncio.gather(*(one.find(pin(), AMD64, name, realisable=False) for name in names))
    assert all(found)
    assert most <= 4


async def test_a_requested_name_is_as_the_client_wrote_it(records: RecordStore, existing: set[str]) -> None:
    source = Source({(): ["ShellCheck"]})
    one = index(source, records)
    await one.evaluate(pin())
    existing.add(store_path("ShellCheck"))
    (package,) = await one.find(pin(), AMD64, "shellcheck") or ()
    assert isinstance(package, Package)
    assert (package.requested_name, package.attribute) == ("shellcheck", "ShellCheck")


async def test_a_line_about_another_attribute_says_nothing(records: RecordStore, existing: set[str]) -> None:
    source = Source({(): ["git", "other"]})
    source.lines[("git",)] = entry(("other",))
    one = index(source, records)
    await one.evaluate(pin())
    existing.update([store_path("git"), store_path("other")])
    assert await one.find(pin(), AMD64, "git") is None
    assert (await one.names("latest")).get("git") is None


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/nix/store/../../etc", "--option", "/nix/store/short", "", "/nix/store/" + "e" * 32],
)
@pytest.mark.parametrize("field", ["derivation", "output"])
async def test_an_entry_with_something_other_than_store_paths_is_no_package(
    records: RecordStore, existing: set[str], field: str, path: str
) -> None:
    source = Source()
    line = json.loads(entry(("git",)))
    item = line["items"][0]
    item.update({"derivation": path} if field == "derivation" else {"outputs": {"out": path}})
    source.lines[("git",)] = json.dumps(line).encode()
    one = index(source, records)
    await one.evaluate(pin())
    existing.update([path, store_path("git"), store_path("git.drv")])
    assert await one.find(pin(), AMD64, "git") is None


async def test_versions_of_a_package_in_all_stored_states_the_latest_first(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    for number, tag in enumerate(["a", "bb", "ccc"]):
        source.lines[("git",)] = entry(("git",), version=f"2.{number}")
        await one.evaluate(pin(tag))
    found = await one.versions("a", "git")
    assert [(each.revision, each.version) for each in found] == [("ccc", "2.2"), ("bb", "2.1"), ("a", "2.0")]
    assert await one.versions("a", "nothing") == []


class MovingTags(Source):
    """All tags are branches; ``states`` says which of them stand for the state of another one."""

    states: Mapping[str, str] = {"same": "latest"}

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=True)

    async def resolve(self, reference: Reference) -> Pin:
        return pin(self.states.get(reference.name, reference.name))


@pytest.mark.parametrize(
    ("public", "shown"), [(True, ["secret", "latest", "ours"]), (False, ["latest", "ours"])]
)
async def test_versions_show_tags_of_other_clients_only_if_builds_are_public(
    records: RecordStore, *, public: bool, shown: list[str]
) -> None:
    one = index(MovingTags(), records, public=public)
    for tag in ("latest", "secret", "ours", "same"):
        await one.names(tag)
        await one.evaluate(pin(MovingTags.states.get(tag, tag)))
    found = await one.versions("ours", "git")
    assert sorted((each.revision, each.tag) for each in found) == sorted((tag, tag) for tag in shown)
    known = (await one.known_versions(["git"]))["git"]
    assert sorted(each.tag for each in known) == (sorted(shown) if public else ["latest"])


async def test_known_versions_list_nothing_and_are_read_once(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    assert await one.known_versions(["git"]) == {}
    assert (source.listed, source.described) == ([], [])
    source.lines[("git",)] = entry(("git",), version="2.0")
    await one.evaluate(pin("a"))
    found = await one.known_versions(["git", "nothing"])
    assert {name: [each.version for each in versions] for name, versions in found.items()} == {"git": ["2.0"]}
    listed = len(source.listed)
    # What this server stores is known at once, and what others store after a while.
    source.lines[("git",)] = entry(("git",), version="2.1")
    await index(source, records).evaluate(pin("bb"))
    assert len((await one.known_versions(["git"]))["git"]) == 1
    source.now += 60
    found = await one.known_versions(["git"])
    assert [each.version for each in found["git"]] == ["2.1", "2.0"]
    assert len(source.listed) == listed + 1


async def test_versions_have_the_tag_of_their_state(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await one.evaluate(pin("a"))
    assert [each.tag for each in await one.versions("a", "git")] == [""]
    source.are_moving = True
    await one.names("a")
    assert [each.tag for each in await one.versions("a", "git")] == ["a"]


async def test_packages_of_one_derivation_are_aliases_only_if_they_have_one_name(
    records: RecordStore,
) -> None:
    source = Source({(): ["git", "gitk", "git-alias"]})
    outputs = {"out": store_path("group")}
    for name, own in (("git", "git"), ("git-alias", "git"), ("gitk", "gitk")):
        source.lines[name,] = entry((name,), name=own, outputs=outputs)
    one = index(source, records)
    await one.evaluate(pin())
    aliases = {package.name: package.alias_of for package in await one.names("latest")}
    assert aliases == {"git": "", "gitk": "", "git-alias": "git"}


# ---- Listing for searches


async def test_a_package_set_is_listed_once_for_concurrent_searches(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await asyncio.gather(*(one.names("latest") for _ in range(5)))
    assert len(source.listed) == 1


async def test_package_sets_are_listed_one_at_a_time_with_a_bounded_queue(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await one.names("stored")
    source.may_end.clear()
    asked = {f"tag-{number}": asyncio.ensure_future(one.names(f"tag-{number}")) for number in range(8)}
    await until_done(asked.values(), 3)
    # Threads read the records, so any three may be rejected; the others wait for ``may_end``.
    refused = [tag for tag, names in asked.items() if names.done()]
    assert (len(refused), source.most_running) == (3, 1)
    for tag in refused:
        with pytest.raises(TooBusy, match="lists 1 package set at once, and 4 more are queued; retry"):
            await asked.pop(tag)
    # Joining a listing takes no place in the queue, and neither does a stored list.
    same = asyncio.ensure_future(one.names(next(iter(asked))))
    assert len(await index(source, records).names("stored")) == len(await one.names("stored")) == 1
    source.may_end.set()
    await asyncio.gather(*asked.values(), same)
    assert (source.most_running, len(source.listed)) == (1, 6)
    await one.names(refused[0])


async def test_a_failed_listing_is_the_answer_until_it_expires(records: RecordStore) -> None:
    source = Source()
    source.is_broken = True
    one = index(source, records)
    for _ in range(3):
        with pytest.raises(EvaluationFailed, match="broken"):
            await one.names("latest")
    assert len(source.opened) == 1
    source.is_broken = False
    assert len(await one.names("other")) == 1
    source.now += 31
    assert len(await one.names("latest")) == 1


async def test_a_rejected_listing_is_not_remembered_as_a_failure(records: RecordStore) -> None:
    source = Source()
    source.may_end.clear()
    one = index(source, records)
    asked = {f"tag-{number}": asyncio.ensure_future(one.names(f"tag-{number}")) for number in range(6)}
    await until_done(asked.values(), 1)
    (refused,) = [tag for tag, names in asked.items() if names.done()]
    with pytest.raises(TooBusy):
        await asked.pop(refused)
    source.may_end.set()
    await asyncio.gather(*asked.values())
    assert len(await one.names(refused)) == 1


async def test_a_remembered_failure_holds_no_references_to_requests(records: RecordStore) -> None:
    source = Source()
    source.is_broken = True
    one = index(source, records)

    async def ask() -> weakref.ref[asyncio.Event]:
        sent = asyncio.Event()
        with pytest.raises(EvaluationFailed):
            await one.names("latest")
        return weakref.ref(sent)

    first, second = await ask(), await ask()
    await asyncio.sleep(0)
    gc.collect()
    assert first() is second() is None
    assert len(source.opened) == 1
