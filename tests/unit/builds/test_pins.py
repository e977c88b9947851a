"""Pins of a made-up source, by a clock that the tests set."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nixery.builds.pins import LookUpBounds, Pinned, PinRecord, Pins, Term
from nixery.builds.slots import Share, Slots
from nixery.errors import PackageSetChanged, SourceUnreachable, TagUnknown, TooBusy
from nixery.nix.packages import PackageSet
from nixery.request_context import Client, RequestContext, enter_request
from nixery.sources.directory import DirectorySource
from nixery.sources.source import Pin, Reference
from nixery.storage.records import RecordStore
from tests.support.event_loop import eventually, settle, until_done

HOUR = 3600.0


class MovingSource:
    """A source whose state the test sets; counts how often it is asked."""

    def __init__(self, state: str = "one") -> None:
        self.description = "fake:"
        self.state = state
        self.asked = self.asking = self.most_concurrent = 0
        self.reachable = True
        self.known = True
        self.answers = asyncio.Event()
        self.answers.set()
        # With these, the source reads its state at once and answers later.
        self.slow = False
        self.found, self.answer = asyncio.Event(), asyncio.Event()

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=not tag.startswith("fixed"))

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        self.asked += 1
        self.asking += 1
        self.most_concurrent = max(self.most_concurrent, self.asking)
        await asyncio.sleep(0)
        await self.answers.wait()
        self.asking -= 1
        if not self.known:
            raise TagUnknown(reference.name, "is unknown")
        if not self.reachable:
            raise SourceUnreachable("no route to host")
        identity = f"{reference.name} is {self.state}"
        if self.slow:
            self.found.set()
            await self.answer.wait()
        return Pin(self.description, identity, identity)

    async def require_reachable(self, reference: Reference) -> None:
        await self.resolve(reference)

    async def confirm(self, pin: Pin) -> None:
        if not pin.identity.endswith(f" is {self.state}"):
            raise PackageSetChanged

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        raise NotImplementedError(pin)


class World:
    """A source, a store and a clock that several servers share."""

    def __init__(self, storage: Path, records: RecordStore) -> None:
        self.source = MovingSource()
        self.records = records
        self.storage = storage
        self.now = 1_000_000.0
        self.servers: list[Pins] = []

    def server(
        self,
        time_to_live: float = HOUR,
        failure_time_to_live: float = 0,
        bounds: LookUpBounds | None = None,
        *,
        current_only: bool = False,
    ) -> Pins:
        pins = Pins(
            self.source,
            self.records,
            time_to_live,
            lambda: self.now,
            failure_time_to_live,
            bounds,
            current_only=current_only,
        )
        self.servers.append(pins)
        return pins


@pytest.fixture
async def world(storage: Path, records: RecordStore) -> AsyncIterator[World]:
    world = World(storage, records)
    yield world
    for server in world.servers:
        await server.close()


async def state(pins: Pins, tag: str = "latest") -> str:
    return (await pins.pin(tag)).pin.identity.removeprefix(f"{tag} is ")


async def test_a_pin_expires_after_its_time_to_live(world: World) -> None:
    pins = world.server()
    assert await state(pins) == "one"
    world.source.state = "two"
    world.now += HOUR - 1
    assert await state(pins) == "one"
    world.now += 2
    assert await state(pins) == "two"
    assert world.source.asked == 2


async def test_each_tag_has_a_separate_pin(world: World) -> None:
    pins = world.server()
    assert await state(pins, "a") == "one"
    world.source.state = "two"
    assert await state(pins, "b") == "two"
    assert await state(pins, "a") == "one"


async def test_servers_on_one_storage_share_pins(world: World) -> None:
    assert await state(world.server()) == "one"
    world.source.state = "two"
    world.now += HOUR / 2
    assert await state(world.server()) == "one"
    assert world.source.asked == 1


async def test_another_source_on_the_storage_has_separate_pins(world: World) -> None:
    await state(world.server())
    world.source.description = "fake:another"
    world.source.state = "two"
    assert await state(world.server()) == "two"


async def test_concurrent_requests_resolve_a_tag_once(world: World) -> None:
    pins = world.server()
    assert await asyncio.gather(*(state(pins) for _ in range(10))) == ["one"] * 10
    assert world.source.asked == 1


async def test_without_a_time_to_live_every_request_resolves(world: World) -> None:
    await state(world.server())
    pins = world.server(time_to_live=0)
    for expected in ("two", "three"):
        world.source.state = expected
        assert await state(pins) == expected


async def test_the_current_state_is_no_earlier_pin(world: World) -> None:
    server = world.server(time_to_live=30)
    await state(server)
    await state(server, "fixed")
    world.source.state = "two"
    # A server on the same storage has just stored its pin.
    command = world.server(time_to_live=0, current_only=True)
    assert await state(command) == "two"
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await state(command)
    # A commit stays what it was.
    assert await state(command, "fixed") == "one"


async def test_a_shorter_time_to_live_applies_to_stored_pins(world: World) -> None:
    await state(world.server())
    world.source.state = "two"
    assert await state(world.server(time_to_live=HOUR / 4)) == "two"


async def due(pins: Pins) -> None:
    """Run the refresh that the timer starts when most of the pin's time has passed."""
    for reference, timer in list(pins._timers.items()):
        timer.cancel()
        pins._due(reference)
    await asyncio.gather(*pins._refreshes)


async def test_a_pin_is_refreshed_before_it_expires_and_replaced_after(world: World) -> None:
    one, other = world.server(), world.server()
    assert [await state(one), await state(one), await state(other)] == ["one"] * 3
    world.source.state = "two"
    world.now += 0.8 * HOUR
    await due(one)
    assert world.source.asked == 2
    world.source.state = "three"
    # All servers use the old pin until it expires, and then its successor.
    assert [await state(one), await state(other), await state(world.server())] == ["one"] * 3
    world.now += 0.3 * HOUR
    assert [await state(one), await state(other), await state(world.server())] == ["two"] * 3
    assert world.source.asked == 2


async def test_a_pin_in_use_is_always_refreshed_in_time(world: World) -> None:
    pins = world.server()
    await state(pins)
    for asked in (2, 3, 4):
        await state(pins)
        world.now += 0.8 * HOUR
        await due(pins)
        assert world.source.asked == asked
        world.now += 0.3 * HOUR
        await state(pins)
        assert world.source.asked == asked, "a request had to wait for the source"
        world.now -= 0.1 * HOUR  # so that the next refresh is in time, too


async def test_a_pin_that_is_first_used_late_is_refreshed_at_once(world: World) -> None:
    pins = world.server()
    await state(pins)
    world.now += 0.8 * HOUR
    await due(pins)
    assert world.source.asked == 1
    await state(pins)
    await asyncio.gather(*pins._refreshes)
    assert world.source.asked == 2
    await state(pins)
    await asyncio.gather(*pins._refreshes)
    assert world.source.asked == 2


async def test_servers_that_resolve_at_the_same_time_agree(world: World) -> None:
    one, other = world.server(), world.server()
    world.source.slow = True
    first = asyncio.ensure_future(state(one))
    await world.source.found.wait()
    world.source.slow, world.source.state = False, "two"
    assert await state(other) == "two"
    world.source.answer.set()
    assert await first == "two"


async def test_a_refresh_that_ends_too_late_changes_nothing(world: World) -> None:
    pins = world.server()
    await state(pins)
    await state(pins)
    world.source.slow = True
    refresh = asyncio.ensure_future(due(pins))
    await world.source.found.wait()
    world.source.slow, world.source.state = False, "two"
    world.now += 1.1 * HOUR
    assert await state(pins) == "two"
    world.source.answer.set()
    await refresh
    assert await state(world.server()) == "two"


async def test_setting_the_clock_back_does_not_prolong_a_pin(world: World) -> None:
    pins = world.server()
    assert await state(pins) == "one"
    world.source.state = "two"
    world.now -= 24 * HOUR
    assert await state(pins) == "two"


async def test_only_one_server_refreshes_a_pin(world: World) -> None:
    servers = [world.server() for _ in range(3)]
    for server in servers:
        await state(server)
        await state(server)
    for server in servers:
        await due(server)
    assert world.source.asked == 2


async def test_an_unused_pin_is_not_refreshed(world: World) -> None:
    pins = world.server()
    await state(pins)
    await due(pins)
    assert world.source.asked == 1
    assert await state(pins) == "one"
    assert world.source.asked == 1


async def test_a_probe_does_not_count_as_a_use(world: World) -> None:
    pins = world.server()
    await pins.require_known("latest")
    for _ in range(3):
        await pins.require_known("latest")
        await due(pins)
        world.source.state = "another"
        world.now += HOUR + 1
        await pins.require_known("latest")
    assert world.source.asked == 1
    # After a restart the record suffices, and the next request gets the current state.
    again = world.server()
    await again.require_known("latest")
    assert world.source.asked == 1
    assert await state(again) == "another"


async def test_a_probe_fails_if_the_source_was_never_reached(world: World) -> None:
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await world.server().require_known("latest")


async def test_a_failed_refresh_keeps_the_pin(world: World) -> None:
    pins = world.server()
    await state(pins)
    await state(pins)
    world.source.reachable = False
    await due(pins)
    assert await state(pins) == "one"


async def test_a_refresh_without_the_storage_keeps_the_pin(world: World) -> None:
    pins = world.server()
    await state(pins)
    await state(pins)
    (record,) = [path for path in (world.storage / "records").rglob("*") if path.is_file()]
    record.unlink()
    record.parent.rmdir()
    record.parent.touch()
    with capture_logs() as lines:
        await due(pins)
    assert [(line["event"], line["log_level"]) for line in lines] == [("pin not refreshed", "warning")]
    assert await state(pins) == "one"


async def test_the_refresh_timer_is_set_for_three_quarters_of_the_time_to_live(world: World) -> None:
    pins = world.server()
    await state(pins)
    (timer,) = pins._timers.values()
    assert timer.when() - asyncio.get_running_loop().time() == pytest.approx(0.75 * HOUR, abs=5)


async def test_a_replaced_pin_is_replaced_on_all_servers(world: World) -> None:
    pins, other = world.server(), world.server()
    outdated = (await pins.pin("latest")).pin
    world.source.state = "two"
    new = await asyncio.gather(*(pins.replace("latest", outdated) for _ in range(5)))
    assert {pinned.pin.identity for pinned in new} == {"latest is two"}
    assert world.source.asked == 2
    assert await state(pins) == "two"
    assert await state(other) == "two"


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"current": {"identity": 1}}', b"\xff"])
async def test_a_torn_record_of_a_pin_is_overwritten(world: World, content: bytes) -> None:
    await state(world.server())
    (record,) = [path for path in (world.storage / "records").rglob("*") if path.is_file()]
    record.chmod(0o600)
    record.write_bytes(content)
    world.source.state = "two"
    assert await state(world.server()) == "two"
    assert await state(world.server()) == "two"
    assert world.source.asked == 2


async def test_a_fixed_tag_is_resolved_once(world: World) -> None:
    pins = world.server()
    assert await state(pins, "fixed") == "one"
    world.source.state = "two"
    world.now += 1000 * HOUR
    assert await state(pins, "fixed") == "one"
    assert await state(world.server(), "fixed") == "one"
    assert await state(world.server(time_to_live=0), "fixed") == "one"
    assert world.source.asked == 1
    assert not pins._timers


async def test_an_unreachable_source_is_answered_with_the_last_pin(world: World) -> None:
    pins = world.server()
    await state(pins)
    world.now += 2 * HOUR
    world.source.reachable = False
    pinned = await pins.pin("latest")
    assert pinned.pin.identity == "latest is one"
    assert pinned.warning == "no route to host"
    # Later requests do not wait for an unresponsive source.
    await pins.pin("latest")
    assert world.source.asked == 2
    world.source.reachable, world.source.state = True, "two"
    world.now += 31
    pinned = await pins.pin("latest")
    assert (pinned.pin.identity, pinned.warning) == ("latest is two", None)


async def test_credentials_are_not_logged(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    pins = world.server()
    await state(pins, "git+https://user:secret@example.org/flake")
    world.now += 2 * HOUR
    world.source.reachable = False
    await pins.pin("git+https://user:secret@example.org/flake")
    logged = [line.partition("revision=")[0] for line in capsys.readouterr().out.splitlines()]
    assert any("reference=git+https://example.org/flake" in line for line in logged)
    assert "secret" not in "".join(logged)


async def test_an_unreachable_source_without_a_pin_is_an_error(world: World) -> None:
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await world.server().pin("latest")


async def test_without_a_time_to_live_only_changes_are_stored(world: World) -> None:
    pins = world.server(time_to_live=0)
    await state(pins)
    (record,) = [path for path in (world.storage / "records").rglob("*") if path.is_file()]
    before = record.stat().st_ino
    await state(pins)
    assert record.stat().st_ino == before
    world.source.state = "two"
    await state(pins)
    world.source.reachable = False
    assert (await world.server(time_to_live=0).pin("latest")).pin.identity == "latest is two"


async def test_a_slow_source_is_answered_with_the_last_pin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.builds.pins._SLOW", 0.01)
    pins = world.server()
    await state(pins)
    world.now += 2 * HOUR
    world.source.state = "two"
    world.source.answers.clear()
    pinned = await pins.pin("latest")
    assert pinned.pin.identity == "latest is one"
    assert pinned.warning is not None
    assert "has not answered" in pinned.warning
    # One attempt continues, and later requests get its result.
    world.now += 31
    await pins.pin("latest")
    assert world.source.asked == 2
    world.source.answers.set()
    await asyncio.gather(*pins._attempts._tasks.values())
    pinned = await pins.pin("latest")
    assert (pinned.pin.identity, pinned.warning) == ("latest is two", None)
    assert world.source.asked == 2


async def test_an_unknown_tag_is_remembered_until_it_expires(world: World) -> None:
    pins = world.server(failure_time_to_live=30)
    world.source.known = False
    for _ in range(5):
        with pytest.raises(TagUnknown):
            await pins.pin("nosuch")
    assert world.source.asked == 1
    world.source.known = True
    world.now += 31
    assert await state(pins, "nosuch") == "one"


class Commits(MovingSource):
    """A source whose states are commits, one for each digit, and whose rule about them the test sets."""

    def __init__(self) -> None:
        super().__init__("1")
        self.rule = "reachable"

    def reference(self, tag: str) -> Reference:
        if len(tag) == 40:
            if self.rule == "none":
                raise TagUnknown(tag, "commits are no tags here")
            return Reference(tag, moving=False, rule=self.rule)
        return Reference(tag, moving=True)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        self.asked += 1
        self.asking += 1
        await self.answers.wait()
        self.asking -= 1
        if reference.rule == "reachable":
            raise TagUnknown(reference.name, "not an ancestor")
        commit = self.state * 40 if reference.moving else reference.name
        return Pin(self.description, commit, commit)


@pytest.fixture
def commits(world: World) -> Commits:
    world.source = Commits()
    return world.source


async def test_a_commit_pinned_through_a_branch_can_be_requested(world: World, commits: Commits) -> None:
    pins = world.server()
    for number in "123":
        commits.state = number
        await pins.pin("main")
        world.now += 2 * HOUR
    asked = commits.asked
    for number in "123":
        assert (await world.server().pin(number * 40)).pin.identity == number * 40
    assert commits.asked == asked
    with pytest.raises(TagUnknown):
        await pins.pin("4" * 40)


async def test_each_commit_has_one_record_and_clients_add_none(world: World, commits: Commits) -> None:
    pins = world.server()
    for _ in range(5):
        await pins.pin("main")
        world.now += 2 * HOUR
    for number in range(20):
        with pytest.raises(TagUnknown):
            await pins.pin(f"{number:040x}")
    assert len([path for path in (world.storage / "records").rglob("*") if path.is_file()]) == 2
    commits.rule = "none"
    await world.server().pin("other")
    assert len([path for path in (world.storage / "records").rglob("*") if path.is_file()]) == 3


async def test_a_commit_accepted_by_another_rule_is_checked_again(world: World, commits: Commits) -> None:
    commits.rule = "any"
    assert (await world.server().pin("7" * 40)).pin.identity == "7" * 40
    commits.rule = "reachable"
    with pytest.raises(TagUnknown):
        await world.server().pin("7" * 40)
    # Older versions wrote pins of commits without any rule.
    await world.server()._records.write(
        Reference("8" * 40, moving=False), PinRecord(current=Term.of(Pin("fake:", "8" * 40, "8" * 40), 1e12))
    )
    with pytest.raises(TagUnknown):
        await world.server().pin("8" * 40)


async def test_a_remembered_unknown_tag_holds_no_references_to_requests(world: World) -> None:
    pins = world.server(failure_time_to_live=HOUR)
    world.source.known = False

    async def ask() -> weakref.ref[asyncio.Event]:
        sent = asyncio.Event()
        with pytest.raises(TagUnknown):
            await pins.pin("latest")
        return weakref.ref(sent)

    first, second = await ask(), await ask()
    await asyncio.sleep(0)
    gc.collect()
    assert first() is second() is None
    assert world.source.asked == 1


async def test_look_ups_and_their_queue_are_bounded(world: World) -> None:
    pins = world.server(bounds=LookUpBounds(tags=Slots(2, 1)))
    world.source.answers.clear()
    asked = {tag: asyncio.ensure_future(pins.pin(tag)) for tag in "abcde"}
    # Threads read the records, so any two may be rejected; the others wait for the source.
    refused = await until_done(asked.values(), 2)
    for one in refused:
        assert isinstance(one.exception(), TooBusy)
    waiting = [tag for tag, one in asked.items() if one not in refused]
    same = [asyncio.ensure_future(pins.pin(tag)) for tag in waiting]
    world.source.answers.set()
    await asyncio.gather(*(asked[tag] for tag in waiting), *same)
    assert world.source.most_concurrent == 2


async def test_an_old_pin_answers_when_the_queue_for_look_ups_is_full(world: World) -> None:
    pins = world.server(bounds=LookUpBounds(tags=Slots(1, 0)))
    await pins.pin("old")
    world.now += 2 * HOUR
    world.source.answers.clear()
    other = asyncio.ensure_future(pins.pin("other"))
    await eventually(lambda: world.source.asking == 1)
    pinned = await pins.pin("old")
    assert pinned.pin.identity == "old is one"
    assert "busy" in (pinned.warning or "")
    world.source.answers.set()
    await other


async def test_searches_for_commits_do_not_delay_tags(world: World, commits: Commits) -> None:
    commits.rule = "any"
    pins = world.server(bounds=LookUpBounds(tags=Slots(1, 0), commits=Slots(1, 0)))
    commits.answers.clear()
    search = asyncio.ensure_future(pins.pin("7" * 40))
    await eventually(lambda: commits.asking == 1)
    tag = asyncio.ensure_future(pins.pin("main"))
    await eventually(lambda: commits.asking == 2)
    commits.answers.set()
    await asyncio.gather(search, tag)


async def test_a_pin_whose_package_set_was_deleted_is_replaced_when_it_is_confirmed(world: World) -> None:
    pins = world.server()
    assert (await pins.confirmed("latest")).identity == "latest is one"
    world.source.state = "two"
    assert (await pins.confirmed("latest")).identity == "latest is two"


async def test_a_client_with_a_full_share_keeps_no_other_client_on_an_old_pin(world: World) -> None:
    slots = Slots(1, 6, share=Share(waiting=3))
    pins = Pins(world.source, world.records, HOUR, lambda: world.now, bounds=LookUpBounds(slots, slots))
    world.servers.append(pins)

    def ask(client: str, tag: str) -> asyncio.Task[Pinned]:
        async def pin() -> Pinned:
            enter_request(RequestContext("id", Client(client)))
            return await pins.pin(tag)

        return copy_context().run(asyncio.ensure_future, pin())

    await ask("192.0.2.1", "latest")
    world.now += 2 * HOUR
    world.source.state = "two"
    world.source.answers.clear()
    others = [ask("192.0.2.1", f"branch{number}") for number in range(4)]
    for _ in range(10):
        await asyncio.sleep(0)
    old = await ask("192.0.2.1", "latest")
    assert old.warning is not None
    assert "NIXERY_MAX_QUEUED_PER_CLIENT" in old.warning
    asked = ask("192.0.2.2", "latest")
    for _ in range(10):
        await asyncio.sleep(0)
    world.source.answers.set()
    pinned = await asked
    assert (pinned.pin.identity, pinned.warning) == ("latest is two", None)
    await asyncio.gather(*others)


class SourceWithCommits(MovingSource):
    """A source with commits as tags, or without."""

    def __init__(self, *, accepted: bool) -> None:
        super().__init__()
        self._accepted = accepted

    def reference(self, tag: str) -> Reference:
        if len(tag) == 40 and not self._accepted:
            raise TagUnknown(tag, "commits are no tags here")
        return Reference("HEAD" if tag == "latest" else tag, moving=len(tag) != 40)


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_state_has_an_exact_tag_if_commits_are_tags(records: RecordStore, accepted: bool) -> None:  # noqa: FBT001
    pins = Pins(SourceWithCommits(accepted=accepted), records, HOUR)
    commit = "0" * 40
    assert pins.exact_tag(commit) == (commit if accepted else None)
    assert pins.exact_tag("sha256-of-a-directory") is None


async def test_only_a_source_with_one_state_ignores_tags(records: RecordStore, tmp_path: Path) -> None:
    directory = DirectorySource(tmp_path, {})
    assert Pins(directory, records, HOUR).ignores_tags
    for accepted in (True, False):
        assert not Pins(SourceWithCommits(accepted=accepted), records, HOUR).ignores_tags


async def test_states_have_the_tags_that_were_looked_up(records: RecordStore) -> None:
    pins = Pins(SourceWithCommits(accepted=True), records, HOUR)
    for tag in ("latest", "stable", "1" * 40):
        await pins.pin(tag)
    assert pins.tags == {"HEAD is one": "latest", "stable is one": "stable"}
    await pins.close()


async def asked_now(server: Pins) -> str:
    """Start the question that is due, and return the result once the source has answered."""
    server.resolution_failure()
    await settle()
    return server.resolution_failure()


async def test_a_source_that_is_out_of_reach_is_reported_while_its_pin_is_served(world: World) -> None:
    server = world.server()
    await server.pin("latest")
    assert await asked_now(server) == ""
    world.source.reachable = False
    world.now += 301
    assert "no route to host" in await asked_now(server)
    await server.require_known("latest")
    world.source.reachable = True
    world.now += 61
    assert await asked_now(server) == ""


async def test_probes_share_one_question_and_its_answer(world: World) -> None:
    server = world.server()
    world.source.answers.clear()
    for _ in range(10):
        server.resolution_failure()
        await asyncio.sleep(0)
    world.source.answers.set()
    await settle()
    world.now += 299
    for _ in range(10):
        await asked_now(server)
    assert world.source.asked == 1


async def test_a_resolution_of_the_default_tag_counts_as_an_answer_and_others_do_not(world: World) -> None:
    server = world.server()
    await server.pin("latest")
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await server.pin("other")
    assert (await asked_now(server), world.source.asked) == ("", 2)


async def test_a_tag_that_the_source_does_not_have_is_an_answer(world: World) -> None:
    world.source.known = False
    assert await asked_now(world.server()) == ""
