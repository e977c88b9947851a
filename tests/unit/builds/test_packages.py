"""The index of package names, with fakes of Nix and of the source."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path

import pytest

from nixery.builds.packages import PackageIndex, PackageNames
from nixery.builds.pins import Pins
from nixery.errors import EvaluationFailed, StorageFull, TooBusy
from nixery.image.platform import AMD64, Platform
from nixery.nix.packages import Details, NixFiles, PackageSet
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.api import Packages
from nixery.server.http import Request
from nixery.sources.source import Pin, Reference
from nixery.storage.records import RecordStore
from tests.support.event_loop import until_done

SET = [
    "git",
    "gitk",
    "gitMinimal",
    "legit",
    "python3",
    "python3-pip",
    "_1password",
    "g++",
    "nested set",
    "-x",
    "Git",
]
NAMES = PackageNames({name: Details("1.0", f"about {name}") for name in SET})


def found(text: str, limit: int = 10) -> list[str]:
    return [package.name for package in NAMES.search(text, limit)]


def test_names_that_begin_with_the_text_come_first() -> None:
    assert found("git") == ["git", "gitk", "gitminimal", "legit"]
    assert found("GIT", 2) == ["git", "gitk"]


def test_names_that_contain_the_text_are_found() -> None:
    assert found("pip") == ["python3-pip"]


def test_similar_names_are_found_if_no_other_matches() -> None:
    assert found("gti") == ["git"]
    assert found("pyhton3")[0] == "python3"
    assert found("zz") == []


def test_names_are_normalised_as_in_requests() -> None:
    assert found("1pass") == ["1password"]
    assert found("g+") == found("nested") == []
    assert len(NAMES) == 7


def test_an_empty_text_finds_the_shortest_names() -> None:
    assert found("", 3) == ["git", "gitk", "legit"]
    assert found("git", 0) == []


def test_a_line_break_matches_no_name() -> None:
    assert found("git\ngitk") == []


def test_a_package_is_found_by_its_name() -> None:
    package = NAMES.get("gitk")
    assert package is not None
    assert (package.version, package.description) == ("1.0", "about gitk")
    assert NAMES.get("nothing") is None


def test_a_large_set_is_searched_the_same_way() -> None:
    large = PackageNames({f"lib{n}": Details() for n in range(5000)})
    assert [package.name for package in large.search("lib", 3)] == ["lib0", "lib1", "lib2"]
    assert [package.name for package in large.search("lib499", 3)] == ["lib499", "lib4990", "lib4991"]
    assert [package.name for package in large.search("999", 2)] == ["lib999", "lib1999"]


class Source:
    """Stands in for ``PackageSource`` and ``Nix``; each tag has a separate pin."""

    description = "fake:"

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.details_fail = self.all_fails = False
        self.now = 0.0
        self.running = self.most_running = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=False)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        return Pin("fake:", reference.name, reference.name)

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[PackageSet]:
        yield NixFiles(Path("/nowhere") / pin.identity, self_contained=True)

    async def index(
        self, platform: Platform, package_set: PackageSet, *, details: bool
    ) -> Mapping[str, Details]:
        assert (platform, isinstance(package_set, NixFiles)) == (AMD64, True)
        self.asked.append(details)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        await self.may_end.wait()
        self.running -= 1
        if self.all_fails:
            raise EvaluationFailed((), "broken")
        if details and self.details_fail:
            raise EvaluationFailed((), "too much")
        return {"git": Details("2.0" if details else "")}


def index(source: Source, records: RecordStore) -> PackageIndex:
    pins = Pins(source, records, 3600)  # type: ignore[arg-type]
    return PackageIndex(pins, source, source, AMD64, records, "program", 30, lambda: source.now)  # type: ignore[arg-type]


async def test_a_package_set_is_listed_once_and_survives_a_restart(records: RecordStore) -> None:
    source = Source()
    one = index(source, records)
    await asyncio.gather(*(one.names("latest") for _ in range(5)))
    assert len(await one.names("latest")) == 1
    package = (await index(source, records).names("latest")).get("git")
    assert package is not None
    assert package.version == "2.0"
    assert source.asked == [True]


async def test_names_are_listed_without_details_if_details_fail(records: RecordStore) -> None:
    source = Source()
    source.details_fail = True
    assert (await index(source, records).names("latest")).get("git") is not None
    assert source.asked == [True, False]


async def test_the_index_works_with_a_full_storage(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = index(Source(), records)
    await one._pins.pin("latest")

    async def put(*_: object) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(records, "put", put)
    assert (await one.names("latest")).get("git") is not None


async def test_only_the_last_lists_are_stored(records: RecordStore) -> None:
    one = index(Source(), records)
    for number in range(8):
        await one.names(f"tag-{number}")
    assert len([record async for record in records.scan("packages")]) == 5


async def test_package_sets_are_listed_one_at_a_time_with_a_bounded_queue(
    records: RecordStore,
) -> None:
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
    assert (source.most_running, len(source.asked)) == (1, 6)
    await one.names(refused[0])


async def test_a_failed_listing_is_the_answer_until_it_expires(records: RecordStore) -> None:
    source = Source()
    source.all_fails = True
    one = index(source, records)
    for _ in range(3):
        with pytest.raises(EvaluationFailed, match="broken"):
            await one.names("latest")
    assert source.asked == [True, False]
    source.all_fails = False
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


async def test_one_client_has_few_searches_at_once_and_blocks_no_other(
    records: RecordStore,
) -> None:
    one = index(Source(), records)
    await one.names("latest")
    packages = Packages(one)

    async def search(client: str) -> int:
        enter_request(RequestContext("id", Client(client)))
        return (await packages.search(Request("GET", "/api/v1/packages", query={"q": "gi"}))).status

    def searching(client: str) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(search(client), context=Context())

    greedy, modest = [searching("greedy") for _ in range(500)], searching("modest")
    answers = await asyncio.gather(*greedy, return_exceptions=True)
    assert await modest == 200
    assert answers.count(200) < 100
    assert all(isinstance(answer, TooBusy) for answer in answers if answer != 200)


async def test_a_remembered_failure_holds_no_references_to_requests(records: RecordStore) -> None:
    source = Source()
    source.all_fails = True
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
    assert source.asked == [True, False]
