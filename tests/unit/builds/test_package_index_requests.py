"""The package index under concurrent requests: builds, searches and lists of names do not wait for each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nixery.builds.evaluator import Evaluator
from nixery.builds.index_records import StateIndex
from nixery.builds.package_index import PackageIndex
from nixery.builds.pins import Pins
from nixery.errors import EvaluationFailed, PackagesUnavailable
from nixery.image.name import parse_image_name
from nixery.image.platform import AMD64
from nixery.image.spelling import NearNames
from nixery.nix.packages import NixFiles, PackageSet
from nixery.server.published_packages import PublishedPackages
from nixery.sources.source import Pin, Reference
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import PACKAGE_DETAILS, PACKAGES, RecordStore


class Source:
    """Stands in for ``PackageSource``; each tag has a separate pin, and no package set evaluates."""

    description = "fake:"

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.may_fail = asyncio.Event()
        self.failure: EvaluationFailed | None = EvaluationFailed((), "broken")

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=False)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002 -- any
        return True

    async def resolve(self, reference: Reference) -> Pin:
        return pin(reference.name)

    async def require_reachable(self, reference: Reference) -> None:
        raise NotImplementedError(reference)

    async def confirm(self, pin: Pin) -> None:
        """One state."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[PackageSet]:
        self.opened.set()
        await self.may_fail.wait()
        if self.failure is not None:
            raise self.failure
        yield NixFiles(Path("/nowhere") / pin.identity, self_contained=True)


def pin(tag: str = "latest") -> Pin:
    return Pin("fake:", tag, tag)


def index(source: Source, records: RecordStore) -> PackageIndex:
    pins = Pins(source, records, 3600)
    return PackageIndex(pins, source, None, AMD64, records, "program")  # type: ignore[arg-type]


async def store(one: PackageIndex, records: RecordStore, state: Pin) -> None:
    listed = StateIndex.listed(one._key(state), state, [((), ["git", "package"])])
    await records.put(PACKAGES, listed.key, listed.encoded())


async def test_a_build_does_not_wait_for_a_list_of_names(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    search = asyncio.ensure_future(one.names("latest"))
    await source.opened.wait()
    async with asyncio.timeout(10):
        assert await one.find(pin(), AMD64, "git") is None
    assert not search.done()
    source.may_fail.set()
    with pytest.raises(EvaluationFailed, match="broken"):
        await search


async def test_a_search_lists_names_although_a_build_has_just_looked_for_the_index(
    records: RecordStore,
) -> None:
    source = Source()
    source.may_fail.set()
    one = index(source, records)
    await one._pin("latest")

    async def build() -> None:
        for name in ("git", "hello"):  # the second look-up begins before the search continues
            assert await one.find(pin(), AMD64, name) is None

    builds = asyncio.ensure_future(build())
    await asyncio.sleep(0)
    with pytest.raises(EvaluationFailed, match="broken"):
        await one.names("latest")
    await builds


async def test_concurrent_searches_are_made_one_at_a_time(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    begun, may_end = asyncio.Event(), threading.Event()
    made: list[StateIndex] = []
    prepare = StateIndex.prepare

    def slow(state: StateIndex) -> StateIndex:
        made.append(state)
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(60)
        return prepare(state)

    one = index(Source(), records)
    for tag in ("latest", "other"):
        await one._pin(tag)
        await store(one, records, pin(tag))
        await one.find(pin(tag), AMD64, "git")
    monkeypatch.setattr(StateIndex, "prepare", slow)
    searches = [asyncio.ensure_future(one.names(tag)) for tag in ("latest", "latest", "other")]
    try:
        await begun.wait()
        await asyncio.to_thread(int)  # the threads have begun all earlier calls
        assert len(made) == 1
    finally:
        may_end.set()
    first, again, other = await asyncio.gather(*searches)
    assert (len(made), first is again, len(other)) == (2, True, 2)


async def test_few_missing_names_of_a_request_get_near_names(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    near = NearNames.of

    def counted(names: NearNames, wanted: str) -> tuple[str, ...]:
        searched.append(wanted)
        return near(names, wanted)

    monkeypatch.setattr(NearNames, "of", counted)
    source = Source()
    one = index(source, records)
    await store(one, records, pin())
    evaluator = Evaluator(source, None, None, one)
    names = [f"package{number}" for number in range(20)]
    with pytest.raises(PackagesUnavailable) as error:
        await evaluator.contents(parse_image_name("/".join(names), AMD64), pin())
    assert sorted(package.name for package in error.value.packages) == sorted(names)
    assert len(searched) == 5
    assert sum(package.near_names == ("package",) for package in error.value.packages) == 5


async def test_a_request_with_many_names_reads_few_parts_at_once(storage: Path, records: RecordStore) -> None:
    class Counting(RecordStore):
        now = most = total = 0

        async def get(self, kind: str, key: str) -> bytes | None:
            if kind != PACKAGE_DETAILS:
                return await super().get(kind, key)
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
            try:
                return await super().get(kind, key)
            finally:
                self.now -= 1

    counting = Counting(FilesystemDriver(storage, storage / "temporary"))
    one = index(Source(), counting)
    names = [f"package{number}" for number in range(100)]
    listed = StateIndex.listed(one._key(pin()), pin(), [((), names)])
    await records.put(PACKAGES, listed.key, listed.encoded())
    found = await asyncio.gather(*(one.find(pin(), AMD64, name) for name in names))
    assert found == [None] * len(names)
    assert counting.total == len(names)
    assert counting.most <= 2


@pytest.mark.security
async def test_a_check_of_many_names_reads_the_storage_once(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any client can send a hundred names, of a state that has no index: each cost a look-up in the bucket."""
    read: list[str] = []
    get = RecordStore.get

    async def counted(store: RecordStore, kind: str, key: str) -> bytes | None:
        read.append(kind)
        return await get(store, kind, key)

    monkeypatch.setattr(RecordStore, "get", counted)
    packages = PublishedPackages(index(Source(), records))
    checked = await packages.check("latest", [f"name{number}" for number in range(200)])
    assert [name.exists for name in checked] == [None] * 100
    assert read.count(PACKAGES) == 1
