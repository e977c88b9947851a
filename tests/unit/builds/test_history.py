"""The history of builds, with made-up events and real records."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import replace
from typing import cast

import pytest
from pydantic import ValidationError

from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayersComplete,
    Queued,
    Realised,
    Requested,
    Reused,
    Stage,
    Started,
    Stored,
)
from nixery.builds.history import BuildHistory, BuildReport, State, stage_name
from nixery.builds.images import Images
from nixery.errors import BuildFailed, PackagesUnavailable, Reason, TooBusy, UnavailablePackage
from nixery.image.name import parse_image_name
from nixery.image.platform import AMD64
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.oci.digest import Digest
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.api import Builds
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.http import Request, StreamResponse
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.sources.source import Pin
from nixery.storage.records import RecordStore
from tests.support.event_loop import eventually, settle

PIN = Pin("fake:", "one", "revision")
DIGEST = Digest("0" * 64)
GCC, BINUTILS = f"{'0' * 32}-gcc-7.3.0.drv", f"{'1' * 32}-binutils-2.30.drv"


def build(name: str = "shell/git") -> Build:
    return Build.of(parse_image_name(name), PIN)


def tell(history: BuildHistory, one: Build, *events: BuildEvent) -> BuildReport:
    for event in events:
        history.observe(one, event)
    report = history.get(one.id)
    assert report is not None
    return report


async def test_a_report_follows_a_build_from_its_request_to_its_end(records: RecordStore) -> None:
    now = 100.0
    history, one = BuildHistory(records, lambda: now), build()
    assert tell(history, one, Requested()).state is State.WAITING
    assert tell(history, one, Queued(3), Queued(2)).position == 2
    now = 102.0
    report = tell(history, one, Started())
    assert (report.state, report.position, report.name, report.platform) == (
        State.RUNNING,
        None,
        "shell/git",
        "linux/amd64",
    )
    tell(
        history,
        one,
        Evaluated(()),
        Fetching(5, 10),
        Building(("x-a.drv",), 1),
        LogLines((("x-a.drv", "hello"),), 4),
    )
    assert (report.fetched, report.to_fetch, report.building, report.built) == (5, 10, ["x-a.drv"], 1)
    assert ([line.text for line in report.log], report.dropped) == (["hello"], 4)
    now = 103.5
    tell(history, one, Realised(7, 800), Grouped(3), LayersComplete(), Stored(DIGEST, 3))
    assert (report.state, report.manifest, report.building) == (State.DONE, str(DIGEST), [])
    assert [stage.name for stage in report.stages] == [stage_name(stage) for stage in Stage]
    took = {stage.name: (stage.started, stage.ended) for stage in report.stages}
    assert took["queued"] == (100.0, 102.0)
    assert took["realise"] == (102.0, 103.5)
    await history.close()


async def test_a_report_has_the_numbers_of_nix_and_the_age_of_each_builder(records: RecordStore) -> None:
    now = 100.0
    history, one = BuildHistory(records, lambda: now), build()
    report = tell(history, one, Started(), Evaluated(()), Fetching(120, 560, 41, 84))
    assert (report.fetched_paths, report.to_fetch_paths) == (41, 84)
    tell(history, one, Building((GCC, BINUTILS), 0, 3))
    now = 110.0
    tell(history, one, Building((GCC,), 1, 3))
    assert (report.built, report.to_build) == (1, 3)
    assert [(builder.name, builder.started, builder.usual) for builder in report.builders] == [
        ("gcc-7.3.0", 100.0, None)
    ]
    now = 160.0
    tell(history, one, Realised(7, 800), Grouped(3), LayersComplete(), Stored(DIGEST, 3))
    assert [(one.name, one.seconds) for one in report.slowest] == [
        ("gcc-7.3.0", 60.0),
        ("binutils-2.30", 10.0),
    ]
    await history.close()


async def test_earlier_builds_estimate_later_ones_also_after_a_restart(records: RecordStore) -> None:
    now = 100.0
    history, one = BuildHistory(records, lambda: now), build()
    tell(history, one, Queued(1), Started(), Evaluated(()), Building((GCC,), 0, 1))
    now = 160.0
    tell(history, one, Realised(1, 1), Stored(DIGEST, 1))
    await history.close()
    again, other = BuildHistory(records, lambda: now), build()
    again.start()
    await asyncio.gather(*again._writing)
    newer = f"{'2' * 32}-gcc-8.1.0.drv"
    report = tell(again, other, Started(), Evaluated(()), Building((newer,), 0, 1))
    assert (report.usual, report.builders[0].usual) == (60.0, 60.0)
    assert tell(again, build("htop"), Started()).usual is None
    await again.close()


async def test_a_builder_that_failed_estimates_no_other(records: RecordStore) -> None:
    history, one, other = BuildHistory(records), build(), build("htop")
    tell(history, one, Started(), Evaluated(()), Building((GCC,), 0, 1), Building((), 0, 1))
    report = tell(history, one, Failed(BuildFailed(GCC, ("first", "last"), "failed")))
    assert (report.failed, report.tail) == ("gcc-7.3.0", ["first", "last"])
    assert tell(history, other, Started(), Building((GCC,), 0, 1)).builders[0].usual is None
    await history.close()


async def test_a_queued_build_knows_when_it_is_expected_to_start(records: RecordStore) -> None:
    history, one = BuildHistory(records, lambda: 100.0), build()
    assert tell(history, one, Queued(2)).starts is None
    assert tell(history, one, Queued(1, 30.0)).starts == 130.0
    assert tell(history, one, Started()).starts is None
    await history.close()


async def test_servers_of_a_storage_know_each_others_builds_while_they_run_and_afterwards(
    records: RecordStore,
) -> None:
    history, other, one = BuildHistory(records), BuildHistory(records), build()
    tell(history, one, Requested(), Started(), Evaluated(()), LogLines((("", "first"),)))
    await history.shared([one.id])
    report = await other.find(one.id)
    assert report is not None
    assert (report.state, [line.text for line in report.log]) == (State.RUNNING, ["first"])
    assert report.reported is not None
    await other.refresh()
    assert [report.id for report in other.recent()] == [one.id]
    tell(history, one, Stored(DIGEST, 1))
    await history.close()
    assert [record async for record in records.scan("build-progress")] == []
    changes = [report async for report, _ in other.follow(one.id, 0)]
    assert (changes[-1].state, changes[-1].manifest) == (State.DONE, str(DIGEST))
    third = BuildHistory(records)
    await third.refresh()
    assert third.recent() == [changes[-1]]
    await other.close()
    await third.close()


async def test_a_build_of_a_dead_server_ends_for_the_others(records: RecordStore) -> None:
    now = 1000.0
    history, one = BuildHistory(records, lambda: now), build()
    tell(history, one, Started(), Evaluated(()))
    await history.shared([one.id])
    other = BuildHistory(records, lambda: now + 120)
    changes = [report async for report, _ in other.follow(one.id, 0)]
    assert changes[-1].state is State.FAILED
    assert "stopped without a word" in (changes[-1].error or "")
    await history.close()
    await other.close()


async def test_the_events_of_a_build_cost_no_write_each(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    put = records.put

    async def counted(kind: str, key: str, content: bytes) -> None:
        written.append(kind)
        await put(kind, key, content)

    monkeypatch.setattr(records, "put", counted)
    history, one = BuildHistory(records), build()
    tell(history, one, Requested(), Started(), Evaluated(()))
    for number in range(1000):
        tell(history, one, LogLines((("", str(number)),)))
        await asyncio.sleep(0)
    tell(history, one, Stored(DIGEST, 1))
    await history.close()
    assert written.count("builds") == 1
    assert written.count("build-progress") <= 3


async def test_a_shared_build_is_in_the_storage(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may ask another server for it at once."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    put = records.put

    async def held(kind: str, key: str, content: bytes) -> None:
        begun.set()
        await go_on.wait()
        await put(kind, key, content)

    monkeypatch.setattr(records, "put", held)
    history, one = BuildHistory(records), build()
    tell(history, one, Requested())
    await begun.wait()
    waiting = asyncio.ensure_future(history.shared([one.id]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    await waiting
    assert await records.get("build-progress", one.id) is not None
    await history.close()


@pytest.mark.parametrize("build_id", ["0", "0123", "0" * 20, "f" * 64])
async def test_a_made_up_build_is_unknown(records: RecordStore, build_id: str) -> None:
    history = BuildHistory(records)
    assert await history.find(build_id) is None
    await history.close()


@pytest.mark.parametrize("planted", [b"", b"null", b'{"id": "00"}', b"\xff"])
async def test_planted_progress_is_ignored(records: RecordStore, planted: bytes) -> None:
    await records.put("build-progress", "0" * 20, planted)
    history = BuildHistory(records)
    await history.refresh()
    assert history.recent() == []
    assert await history.find("0" * 20) is None
    await history.close()


async def test_finished_builds_survive_a_restart(records: RecordStore) -> None:
    history, one, other = BuildHistory(records), build(), build("htop")
    tell(history, one, Started(), Evaluated(()), Failed(BuildFailed("x.drv", ("last line",), "failed")))
    tell(history, other, Started())
    await history.close()
    again = BuildHistory(records)
    again.start()
    await again.close()
    (report,) = again.recent()
    assert (report.id, report.state) == (one.id, State.FAILED)
    assert report.error is not None
    assert "last line" in report.error


async def test_a_torn_record_of_a_build_is_ignored(records: RecordStore) -> None:
    await records.put("builds", "00ff", b'{"id":')
    history = BuildHistory(records)
    history.start()
    await history.close()
    assert history.recent() == []


@pytest.mark.parametrize("field", ["size", "fetched", "packed_bytes"])
async def test_a_planted_number_that_no_page_can_show(field: str, records: RecordStore) -> None:
    report = BuildReport(
        id="00ff", name="git", platform="linux/amd64", revision="a", created=1, ended=2, layers=1
    )
    planted = {**report.model_dump(), field: 10**400}
    await records.put("builds", "00ff", json.dumps(planted).encode())
    history = BuildHistory(records)
    history.start()
    await history.close()
    assert history.recent() == []


@pytest.mark.security
@pytest.mark.parametrize(
    "planted",
    [
        {"name": "x" * 100_000},
        {"error": "x" * 100_000},
        {"building": ["x"] * 10_000},
        {"slowest": [{"name": "x", "seconds": 0}] * 10_000},
        {"log": [{"number": 0, "derivation": "x", "text": ""}] * 10_000},
    ],
    ids=["name", "error", "builders", "slowest", "log"],
)
async def test_a_planted_text_that_no_build_has(planted: dict[str, object], records: RecordStore) -> None:
    """Lists of builds show these of fifty: a planted megabyte in each stopped the server at each request."""
    report = BuildReport(
        id="00ff", name="git", platform="linux/amd64", revision="a", created=1, ended=2, layers=1
    )
    await records.put("builds", "00ff", json.dumps({**report.model_dump(), **planted}).encode())
    history = BuildHistory(records)
    history.start()
    await history.close()
    assert history.recent() == []


@pytest.mark.security
@pytest.mark.parametrize("field", ["log", "slowest", "stages", "building", "builders", "tail"])
def test_a_planted_report_is_read_up_to_its_first_wrong_element(field: str) -> None:
    """pydantic makes an error of a kilobyte for each, and a report has up to 100,000 commas: a second each."""
    report = BuildReport(id="00ff", name="git", platform="linux/amd64", revision="a", created=1, ended=2)
    planted = json.dumps({**report.model_dump(), field: [{"x": 0}] * 20_000}).encode()
    with pytest.raises(ValidationError) as error:
        BuildReport.model_validate_json(planted)
    assert error.value.error_count() < 10


@pytest.mark.security
@pytest.mark.parametrize("kind", ["builds", "build-progress"])
async def test_a_planted_report_is_not_read_at_each_request(
    kind: str, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.builds.history._REFRESH", 0)
    monkeypatch.setattr("nixery.builds.history._FRESH", 0)
    await records.put(kind, "f" * 20, b'{"id": 0}')
    read: list[bytes | None] = []
    get = RecordStore.get

    async def counted(store: RecordStore, kind: str, key: str) -> bytes | None:
        read.append(content := await get(store, kind, key))
        return content

    monkeypatch.setattr(RecordStore, "get", counted)
    history = BuildHistory(records)
    for _ in range(3):
        await history.refresh()
    assert len([content for content in read if content is not None]) == 1
    await history.close()


@pytest.mark.security
@pytest.mark.parametrize("state", [{"state": "found"}, {"state": "failed", "packages": None}])
async def test_planted_reports_that_no_server_stores_are_not_kept(
    state: dict[str, object], records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server bounds those of its own builds as they end; another writer of the storage filled the memory with them."""
    monkeypatch.setattr("nixery.builds.history._REFRESH", 0)
    history = BuildHistory(records)
    for number in range(3):
        key = f"{number:020x}"
        report = BuildReport(
            id=key, name="git", platform="linux/amd64", revision="a", created=1, ended=2, packages=1
        )
        await records.put("builds", key, json.dumps({**report.model_dump(), **state}).encode())
        await history.refresh()
        await records.delete("builds", key)
    assert history.recent() == []
    await history.close()


async def test_only_the_last_builds_are_kept(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.builds.history._KEPT", 3)
    history = BuildHistory(records)
    builds = [Build(f"{n:020x}", parse_image_name("git"), PIN) for n in range(6)]
    for one in builds:
        tell(history, one, Started())
    for one in builds[:5]:
        history.observe(one, Stored(DIGEST, 1))
    while history._writing:
        await asyncio.gather(*history._writing)
    assert [report.id for report in history.recent()] == [one.id for one in reversed(builds[2:])]
    assert len([record async for record in records.scan("builds")]) == 3


async def test_a_log_is_bounded_in_lines_and_in_characters(records: RecordStore) -> None:
    history, one = BuildHistory(records), build()
    report = tell(history, one, Started(), LogLines(tuple(("", str(n)) for n in range(700))))
    assert (len(report.log), report.log[0].text, report.dropped) == (500, "200", 200)
    report = tell(history, one, LogLines(tuple(("", "x" * 2000) for _ in range(100))))
    assert sum(len(line.text) for line in report.log) <= 64 * 1024


async def test_an_image_that_was_found_has_a_report_only_if_requested(records: RecordStore) -> None:
    history, one = BuildHistory(records), build()
    history.observe(one, Reused(DIGEST))
    assert history.recent() == []
    report = tell(history, build(), Requested(), Reused(DIGEST))
    assert report.state is State.FOUND
    await history.close()


async def test_a_follower_gets_each_line_once_and_can_resume(
    records: RecordStore,
) -> None:
    history, one = BuildHistory(records), build()
    tell(history, one, Started(), LogLines((("", "first"),)))
    seen: list[str] = []
    numbers: list[int] = []

    async def follow() -> None:
        async for report, lines in history.follow(one.id, 0):
            numbers.append(report.number)
            seen.extend(line.text for line in lines)

    follower = asyncio.create_task(follow())
    await eventually(lambda: seen == ["first"])
    tell(history, one, LogLines((("", "second"),)))
    await eventually(lambda: "second" in seen)
    tell(history, one, LogLines((("", "third"),)), Stored(DIGEST, 1))
    await asyncio.wait_for(follower, 5)
    assert seen == ["first", "second", "third"]
    assert numbers == sorted(set(numbers))
    rest = [line.text async for _, lines in history.follow(one.id, numbers[0]) for line in lines]
    assert rest == ["second", "third"]
    await history.close()


async def test_closing_ends_followers(records: RecordStore) -> None:
    history, one = BuildHistory(records), build()
    tell(history, one, Started())

    async def follow() -> int:
        return len([report async for report, _ in history.follow(one.id, 0)])

    follower = asyncio.create_task(follow())
    await eventually(lambda: one.id in history._changed)
    await history.close()
    assert await asyncio.wait_for(follower, 5) == 2


async def test_a_private_server_hides_names_and_logs_of_builds(records: RecordStore) -> None:
    history, one = BuildHistory(records), replace(build("secret"), request_id="secret-1")
    one = replace(one, pin=replace(one.pin, revision="secret branch"))
    tell(history, one, Started(), Building(("x-secret.drv",), 0), LogLines((("x-secret.drv", "secret"),)))
    hidden = PublishedBuilds(history, FollowerBounds(10, 10), public=False)
    seen = [hidden.get(one.id), *hidden.recent()]
    tell(history, one, Failed(BuildFailed("x-secret.drv", ("secret",), "secret")))
    seen += [hidden.get(one.id)]
    lines = [line async for _, lines in hidden.follow(one.id, 0) for line in lines]
    assert lines == []
    for report in seen:
        assert report is not None
        assert "secret" not in report.model_dump_json()
    assert PublishedBuilds(history, FollowerBounds(10, 10), public=True).recent()[0].name == "secret"
    await history.close()


async def test_rejected_builds_evict_no_others(records: RecordStore) -> None:
    history = BuildHistory(records)
    first = build()
    tell(history, first, Started(), Stored(DIGEST, 1))
    for _ in range(300):
        refused = build()
        history.observe(refused, Requested())
        history.observe(refused, Failed(TooBusy(1, 1, 10)))
        assert history.get(refused.id) is None
    await history.close()
    assert [report.id for report in history.recent()] == [first.id]


async def test_builds_of_made_up_names_evict_no_others_and_are_not_stored(
    records: RecordStore,
) -> None:
    history = BuildHistory(records)
    built, failed = build(), build("broken")
    tell(history, built, Started(), Evaluated(()), Stored(DIGEST, 1))
    tell(history, failed, Started(), Evaluated(()), Failed(BuildFailed("x.drv", (), "failed")))
    for number in range(300):
        missing = PackagesUnavailable((UnavailablePackage(f"missing{number}", Reason.MISSING),))
        tell(history, build(f"missing{number}"), Started(), Failed(missing))
    await history.close()
    assert {record.key async for record in records.scan("builds")} == {built.id, failed.id}
    assert [record async for record in records.scan("build-progress")] == []
    assert history.get(built.id) is not None
    assert history.get(failed.id) is not None
    assert len(history.recent()) < 100


async def test_failed_builds_evict_no_successful_ones(records: RecordStore) -> None:
    history, built = BuildHistory(records), build()
    tell(history, built, Started(), Evaluated(()), Stored(DIGEST, 1))
    for _ in range(250):
        tell(history, build("broken"), Started(), Evaluated(()), Failed(BuildFailed("x.drv", (), "failed")))
    await history.close()
    assert history.get(built.id) is not None
    assert len([record async for record in records.scan("builds")]) == 101


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "00ff"},
        {"created": 1e300},
        {"ended": 1e300},
        {"ended": None},
        {"created": -1},
        {"stages": [{}]},
    ],
)
async def test_an_invalid_record_of_a_build_is_ignored(
    records: RecordStore, changes: dict[str, object]
) -> None:
    history, one = BuildHistory(records), build()
    report = tell(history, one, Started(), Evaluated(()), Stored(DIGEST, 1))
    await history.close()
    changed = {**json.loads(report.model_dump_json()), **changes}
    await records.put("builds", one.id, json.dumps(changed).encode())
    again = BuildHistory(records)
    again.start()
    await again.close()
    assert again.recent() == []


async def test_a_build_displaced_from_the_queue_keeps_its_report(records: RecordStore) -> None:
    history, displaced = BuildHistory(records), build()
    history.observe(displaced, Requested())
    history.observe(displaced, Queued(2))
    history.observe(displaced, Failed(TooBusy(1, 1, 10, TooBusy.DISPLACED)))
    report = history.get(displaced.id)
    assert report is not None
    assert (report.state, "took this one's place" in (report.error or "")) == (State.FAILED, True)
    await history.close()


class Followers:
    """Clients that follow one build."""

    def __init__(self, history: BuildHistory, bounds: FollowerBounds, followed: Build) -> None:
        self.published = PublishedBuilds(history, bounds, public=True)
        self._followed = followed

    def follow(self, client: str) -> asyncio.Task[int]:
        async def follow() -> int:
            enter_request(RequestContext(client, Client(client)))
            return len([report async for report, _ in self.published.follow(self._followed.id, 0)])

        return asyncio.get_running_loop().create_task(follow(), context=copy_context())


async def test_followers_of_one_client_block_no_other(records: RecordStore) -> None:
    history, one = BuildHistory(records), build()
    tell(history, one, Started())
    followers = Followers(history, FollowerBounds(4, 3), one)
    greedy = [followers.follow("greedy") for _ in range(5)]
    await settle()
    for task in greedy[3:]:
        with pytest.raises(TooBusy, match="NIXERY_MAX_FOLLOWERS_PER_CLIENT"):
            await task
    first, second = followers.follow("modest"), followers.follow("other")
    # The second one displaces the oldest follower of the client that has the most.
    assert await asyncio.wait_for(greedy[0], 5) == 1
    third = followers.follow("third")
    assert await asyncio.wait_for(greedy[1], 5) == 1
    fourth = followers.follow("fourth")
    with pytest.raises(TooBusy, match=r"NIXERY_MAX_FOLLOWERS\)"):
        await fourth
    followed = [greedy[2], first, second, third]
    assert not any(task.done() for task in followed)
    tell(history, one, Stored(DIGEST, 1))
    await asyncio.wait_for(asyncio.gather(*followed), 5)
    assert followers.published._followers == {}
    await history.close()


@pytest.mark.parametrize("what", ["list", "events"])
async def test_one_client_has_few_answers_at_once_and_blocks_no_other(
    records: RecordStore, what: str
) -> None:
    history = BuildHistory(records)
    published = PublishedBuilds(history, FollowerBounds(1000, 1000), public=True)
    builds = Builds(published, cast(Images, None), cast(BuildCancellation, None), (AMD64,))
    one = build()
    tell(history, one, Requested(), Started(), Failed(BuildFailed(None, (), "no")))

    async def ask(client: str) -> int:
        enter_request(RequestContext("id", Client(client)))
        if what == "list":
            return (await builds.recent(Request("GET", "/api/v1/builds"))).status
        answer = await builds.events(Request("GET", "/"), one.id)
        assert isinstance(answer, StreamResponse)
        async with aclosing(answer.begin()) as pieces:
            assert b"event: end" in await anext(pieces)
        return answer.status

    def asking(client: str) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(ask(client), context=copy_context())

    greedy = [asking("greedy") for _ in range(500)]
    await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
    # By the first answer, all requests are in the queue or rejected.
    assert 500 - 1 - 64 <= sum(task.done() for task in greedy) <= 500 - 64
    modest = asking("modest")
    assert await modest == 200
    answers = await asyncio.gather(*greedy, return_exceptions=True)
    assert answers.count(200) == 1 + 64
    assert all(isinstance(answer, TooBusy) for answer in answers if answer != 200)
    await history.close()


async def test_builds_of_stored_images_evict_nothing_and_few_are_stored(
    records: RecordStore,
) -> None:
    history, built = BuildHistory(records), build()
    tell(history, built, Started(), Evaluated(()), Stored(DIGEST, 1))
    for _ in range(300):
        tell(history, build("stored"), Requested(), Reused(DIGEST))
    # Before anything else runs: a slow storage must not hold the reports of all of them.
    assert len(history.recent()) < 100
    await history.close()
    assert {record.key async for record in records.scan("builds")} == {built.id}
    assert len([record async for record in records.scan("build-progress")]) <= 50
    assert history.get(built.id) is not None
