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

from nixery.builds.pins import BoundedSource, Pinned, PinRecord, Pins, Term
from nixery.builds.slots import Share, Slots
from nixery.errors import SourceUnreachable, TagUnknown
from nixery.nix.packages import PackageSet
from nixery.request_context import Client, RequestContext, enter_request
from nixery.sources.source import Pin, Reference
from nixery.storage.filesystem_records import FilesystemRecordStore

HOUR = 3600.0


class MovingSource:
    """A source whose state the test sets; counts how often it is asked."""

    def __init__(self, state: str = "one") -> None:
        self.description = "fake:"
        self.state = state
        self.asked = 0
        self.reachable = True
        self.known = True
        self.answers = asyncio.Event()
        self.answers.set()
        # With these, an answer is found at once and arrives later.
        self.slow = False
        self.found, self.answer = asyncio.Event(), asyncio.Event()

    def reference(self, tag: str) -> Reference:
        return Reference(tag, moving=not tag.startswith("fixed"))

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        self.asked += 1
        await asyncio.sleep(0)
        await self.answers.wait()
        if not self.known:
            raise TagUnknown(reference.name, "is unknown")
        if not self.reachable:
            raise SourceUnreachable("no route to host")
        identity = f"{reference.name} is {self.state}"
        if self.slow:
            self.found.set()
            await self.answer.wait()
        return Pin(self.description, identity, identity)

    async def confirm(self, pin: Pin) -> None:
        raise NotImplementedError(pin)

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        raise NotImplementedError(pin)


class World:
    """A source, a store and a clock that several servers share."""

    def __init__(self, storage: Path) -> None:
        (storage / "temporary").mkdir()
        self.source = MovingSource()
        self.records = FilesystemRecordStore(storage, storage / "temporary")
        self.storage = storage
        self.now = 1_000_000.0
        self.servers: list[Pins] = []

    def server(self, time_to_live: float = HOUR) -> Pins:
        pins = Pins(self.source, self.records, time_to_live, lambda: self.now)
        self.servers.append(pins)
        return pins


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for server in world.servers:
        await server.close()


async def state(pins: Pins, tag: str = "latest") -> str:
    return (await pins.pin(tag)).pin.identity.removeprefix(f"{tag} is ")


async def test_a_pin_holds_for_its_time(world: World) -> None:
    pins = world.server()
    assert await state(pins) == "one"
    world.source.state = "two"
    world.now += HOUR - 1
    assert await state(pins) == "one"
    world.now += 2
    assert await state(pins) == "two"
    assert world.source.asked == 2


async def test_each_tag_has_its_own(world: World) -> None:
    pins = world.server()
    assert await state(pins, "a") == "one"
    world.source.state = "two"
    assert await state(pins, "b") == "two"
    assert await state(pins, "a") == "one"


async def test_all_servers_on_a_store_agree_and_a_restart_changes_nothing(world: World) -> None:
    assert await state(world.server()) == "one"
    world.source.state = "two"
    world.now += HOUR / 2
    assert await state(world.server()) == "one"
    assert world.source.asked == 1


async def test_another_source_on_the_store_is_another_matter(world: World) -> None:
    await state(world.server())
    world.source.description = "fake:another"
    world.source.state = "two"
    assert await state(world.server()) == "two"


async def test_who_asks_at_the_same_time_resolves_once(world: World) -> None:
    pins = world.server()
    assert await asyncio.gather(*(state(pins) for _ in range(10))) == ["one"] * 10
    assert world.source.asked == 1


async def test_zero_resolves_for_every_request(world: World) -> None:
    await state(world.server())
    pins = world.server(time_to_live=0)
    for expected in ("two", "three"):
        world.source.state = expected
        assert await state(pins) == expected


async def test_a_shorter_time_counts_at_once(world: World) -> None:
    await state(world.server())
    world.source.state = "two"
    assert await state(world.server(time_to_live=HOUR / 4)) == "two"


async def due(pins: Pins) -> None:
    """What the timer does when most of the pin's time has passed."""
    for reference, timer in list(pins._timers.items()):
        timer.cancel()
        pins._due(reference)
    await asyncio.gather(*pins._refreshes)


async def test_the_successor_is_looked_up_before_and_taken_after(world: World) -> None:
    one, other = world.server(), world.server()
    assert [await state(one), await state(one), await state(other)] == ["one"] * 3
    world.source.state = "two"
    world.now += 0.8 * HOUR
    await due(one)
    assert world.source.asked == 2
    world.source.state = "three"
    # Until then, everybody has the old one; from then on the one that was looked up.
    assert [await state(one), await state(other), await state(world.server())] == ["one"] * 3
    world.now += 0.3 * HOUR
    assert [await state(one), await state(other), await state(world.server())] == ["two"] * 3
    assert world.source.asked == 2


async def test_every_successor_is_looked_up_before(world: World) -> None:
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
        world.now -= 0.1 * HOUR  # so that the next one is in time, too


async def test_a_pin_that_comes_into_use_late_gets_a_successor_all_the_same(world: World) -> None:
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


async def test_servers_that_ask_at_the_same_time_agree(world: World) -> None:
    one, other = world.server(), world.server()
    world.source.slow = True
    first = asyncio.ensure_future(state(one))
    await world.source.found.wait()
    world.source.slow, world.source.state = False, "two"
    assert await state(other) == "two"
    world.source.answer.set()
    assert await first == "two"


async def test_a_successor_that_comes_too_late_changes_nothing(world: World) -> None:
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


async def test_a_clock_that_is_set_back_keeps_no_pin_for_ever(world: World) -> None:
    pins = world.server()
    assert await state(pins) == "one"
    world.source.state = "two"
    world.now -= 24 * HOUR
    assert await state(pins) == "two"


async def test_servers_do_not_all_look_the_successor_up(world: World) -> None:
    servers = [world.server() for _ in range(3)]
    for server in servers:
        await state(server)
        await state(server)
    for server in servers:
        await due(server)
    assert world.source.asked == 2


async def test_nobody_asks_for_what_nobody_uses(world: World) -> None:
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
    # After a restart the record is enough, and the next request has what is there now.
    again = world.server()
    await again.require_known("latest")
    assert world.source.asked == 1
    assert await state(again) == "another"


async def test_a_probe_tells_that_a_source_was_never_reached(world: World) -> None:
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await world.server().require_known("latest")


async def test_a_successor_that_cannot_be_had_is_no_trouble_yet(world: World) -> None:
    pins = world.server()
    await state(pins)
    await state(pins)
    world.source.reachable = False
    await due(pins)
    assert await state(pins) == "one"


async def test_a_storage_that_cannot_be_asked_for_the_successor_is_no_trouble_yet(world: World) -> None:
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


async def test_timer_is_set_for_most_of_the_time(world: World) -> None:
    pins = world.server()
    await state(pins)
    (timer,) = pins._timers.values()
    assert timer.when() - asyncio.get_running_loop().time() == pytest.approx(0.75 * HOUR, abs=5)


async def test_an_outdated_pin_is_replaced_for_everybody(world: World) -> None:
    pins, other = world.server(), world.server()
    outdated = (await pins.pin("latest")).pin
    world.source.state = "two"
    new = await asyncio.gather(*(pins.replace("latest", outdated) for _ in range(5)))
    assert {pinned.pin.identity for pinned in new} == {"latest is two"}
    assert world.source.asked == 2
    assert await state(pins) == "two"
    assert await state(other) == "two"


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"current": {"identity": 1}}', b"\xff"])
async def test_a_torn_record_is_written_anew(world: World, content: bytes) -> None:
    await state(world.server())
    (record,) = [path for path in (world.storage / "records").rglob("*") if path.is_file()]
    record.chmod(0o600)
    record.write_bytes(content)
    world.source.state = "two"
    assert await state(world.server()) == "two"
    assert await state(world.server()) == "two"
    assert world.source.asked == 2


async def test_what_cannot_change_is_resolved_once(world: World) -> None:
    pins = world.server()
    assert await state(pins, "fixed") == "one"
    world.source.state = "two"
    world.now += 1000 * HOUR
    assert await state(pins, "fixed") == "one"
    assert await state(world.server(), "fixed") == "one"
    assert await state(world.server(time_to_live=0), "fixed") == "one"
    assert world.source.asked == 1
    assert not pins._timers


async def test_the_last_pin_is_better_than_none(world: World) -> None:
    pins = world.server()
    await state(pins)
    world.now += 2 * HOUR
    world.source.reachable = False
    pinned = await pins.pin("latest")
    assert pinned.pin.identity == "latest is one"
    assert pinned.warning == "no route to host"
    # Not everybody who comes by waits for a source that does not answer.
    await pins.pin("latest")
    assert world.source.asked == 2
    world.source.reachable, world.source.state = True, "two"
    world.now += 31
    pinned = await pins.pin("latest")
    assert (pinned.pin.identity, pinned.warning) == ("latest is two", None)


async def test_a_client_with_a_full_share_keeps_nobody_on_an_old_pin(world: World) -> None:
    slots = Slots(1, 6, share=Share(waiting=3))
    pins = Pins(BoundedSource(world.source, slots, slots), world.records, HOUR, lambda: world.now)
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


async def test_credentials_are_not_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    pins = world.server()
    await state(pins, "git+https://user:secret@example.org/flake")
    world.now += 2 * HOUR
    world.source.reachable = False
    await pins.pin("git+https://user:secret@example.org/flake")
    logged = [line.partition("revision=")[0] for line in capsys.readouterr().out.splitlines()]
    assert any("reference=git+https://example.org/flake" in line for line in logged)
    assert "secret" not in "".join(logged)


async def test_without_any_pin_there_is_no_answer(world: World) -> None:
    world.source.reachable = False
    with pytest.raises(SourceUnreachable):
        await world.server().pin("latest")


async def test_zero_writes_down_what_is_new_alone(world: World) -> None:
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


async def test_a_source_that_takes_its_time_is_not_waited_for(
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
    # One attempt goes on, and later requests have what comes of it.
    world.now += 31
    await pins.pin("latest")
    assert world.source.asked == 2
    world.source.answers.set()
    await asyncio.gather(*pins._attempts._tasks.values())
    pinned = await pins.pin("latest")
    assert (pinned.pin.identity, pinned.warning) == ("latest is two", None)
    assert world.source.asked == 2


async def test_an_unknown_tag_is_unknown_for_a_while(world: World) -> None:
    pins = Pins(world.source, world.records, HOUR, lambda: world.now, failure_time_to_live=30)
    world.servers.append(pins)
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
        if reference.rule == "reachable":
            raise TagUnknown(reference.name, "not an ancestor")
        commit = self.state * 40 if reference.moving else reference.name
        return Pin(self.description, commit, commit)


@pytest.fixture
def commits(world: World) -> Commits:
    world.source = Commits()
    return world.source


async def test_a_commit_that_was_pinned_through_a_branch_is_known(world: World, commits: Commits) -> None:
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


async def test_each_commit_is_one_record_and_clients_add_none(world: World, commits: Commits) -> None:
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


async def test_what_another_rule_accepted_is_looked_at_anew(world: World, commits: Commits) -> None:
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


async def test_an_unknown_tag_keeps_nothing_of_the_requests_it_answered(world: World) -> None:
    pins = Pins(world.source, world.records, HOUR, lambda: world.now, failure_time_to_live=HOUR)
    world.servers.append(pins)
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
