"""Shared builds, their limits, and remembered failures, with fakes of the builder and the observer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Collection
from contextvars import Context
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from nixery.builds.coordinator import Admit, BuildBounds, BuildCoordinator, Leave
from nixery.builds.events import Build, BuildEvent, Failed, Joined, Observe, Queued, Requested, Started
from nixery.builds.image import Image
from nixery.builds.slots import Slots
from nixery.errors import (
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildFailed,
    BuildNotAllowed,
    InternalError,
    NixeryError,
    PackageSetChanged,
    QuotaExceeded,
    ShuttingDown,
    StorageError,
    TooBusy,
)
from nixery.image.name import ImageRequest, parse_image_name
from nixery.oci.documents import ExecutionParameters, docker_manifest, image_config, image_manifest
from nixery.request_context import Client, RequestContext, current_request, enter_request
from nixery.sources.source import Pin
from tests.support.event_loop import settle

PIN = Pin("fake:", "one", "one")
REQUEST = parse_image_name("git")

# Seconds to wait for an event that is due at once.
_TIMEOUT = 10


class World:
    """Stands in for ``ImageBuilder`` and ``BuildObserver``."""

    def __init__(self) -> None:
        self.builds = 0
        self.error: Exception | None = None
        self.now = 0.0
        self.slots = Slots(100, 0)
        self.admit: Admit | None = None
        self.seconds: float | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.running = self.most_running = 0
        self.seen: list[tuple[Build, BuildEvent]] = []
        # With the id of the request in whose context it was observed.
        self.seen_by: list[tuple[str | None, BuildEvent]] = []

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        assert (pin.source, observe is not None) == ("fake:", True)
        self.builds += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.may_end.wait()
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        config = image_config(request.platform.architecture, ExecutionParameters(), [])
        return Image(image_manifest(config, []), docker_manifest(config, []))

    def observe(self, build: Build, event: BuildEvent) -> None:
        context = current_request()
        self.seen.append((build, event))
        self.seen_by.append((context.id if context else None, event))

    def of(self, name: str) -> list[BuildEvent]:
        """The events of an image with one package."""
        return [event for build, event in self.seen if build.request.requested == (name,)]

    def coordinator(self, failure_time_to_live: float = 30) -> BuildCoordinator:
        bounds = BuildBounds(self.slots, self.seconds)
        if self.admit is not None:
            bounds = replace(bounds, admit=self.admit)
        return BuildCoordinator(None, self, [self], bounds, failure_time_to_live, lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_failure_is_the_answer_until_it_expires(world: World) -> None:
    builds = world.coordinator()
    world.error = BuildFailed("git.drv", ("no",), "failed")
    for _ in range(5):
        with pytest.raises(BuildFailed) as raised:
            await builds.image(REQUEST, PIN)
        assert (str(raised.value), raised.value.log_tail) == (str(world.error), ("no",))
    assert world.builds == 1
    world.error = None
    world.now += 31
    await builds.image(REQUEST, PIN)


async def test_a_failure_is_for_clients_that_may_have_the_image_built(world: World) -> None:
    builds = world.coordinator()
    world.error = BuildFailed("git.drv", ("a line of the builder's log",), "failed")
    with pytest.raises(BuildFailed):
        await builds.image(REQUEST, PIN)
    with pytest.raises(BuildNotAllowed):
        await builds.image(REQUEST, PIN, may_build=False)


async def test_a_remembered_failure_holds_no_references_to_requests(world: World) -> None:
    builds = world.coordinator()
    world.error = BuildFailed("git.drv", ("no",), "failed")

    async def ask() -> weakref.ref[asyncio.Event]:
        sent = asyncio.Event()
        with pytest.raises(BuildFailed):
            await builds.image(REQUEST, PIN)
        return weakref.ref(sent)

    first = await ask()
    world.error = None
    second = await ask()
    await settle()
    # The events hold the error as well.
    world.seen.clear()
    world.seen_by.clear()
    gc.collect()
    assert first() is second() is None
    assert world.builds == 1


async def test_a_failure_is_remembered_for_one_image_and_one_pin(world: World) -> None:
    builds = world.coordinator()
    world.error = BuildFailed("git.drv", (), "failed")
    with pytest.raises(BuildFailed):
        await builds.image(REQUEST, PIN)
    world.error = None
    await builds.image(parse_image_name("htop"), PIN)
    await builds.image(REQUEST, Pin("fake:", "two", "two"))


@pytest.mark.parametrize("error", [ShuttingDown(), PackageSetChanged(), StorageError("full")])
async def test_a_transient_failure_is_retried(world: World, error: NixeryError) -> None:
    builds = world.coordinator()
    world.error = error
    with pytest.raises(type(error)):
        await builds.image(REQUEST, PIN)
    world.error = None
    await builds.image(REQUEST, PIN)


async def test_failures_are_not_remembered_without_a_time_to_live(world: World) -> None:
    builds = world.coordinator(0)
    world.error = BuildFailed("git.drv", (), "failed")
    for _ in range(2):
        with pytest.raises(BuildFailed):
            await builds.image(REQUEST, PIN)
    assert world.builds == 2


async def test_a_pull_joins_the_unattended_build_of_the_same_image(world: World) -> None:
    world.may_end.clear()
    builds = world.coordinator()
    one = await builds.begin(REQUEST, PIN)
    assert await builds.begin(REQUEST, PIN) is one
    world.may_end.set()
    await builds.image(REQUEST, PIN)
    assert world.builds == 1
    assert {build.id for build, _ in world.seen} == {one.id}
    assert [type(event) for _, event in world.seen] == [Requested, Started]
    assert (await builds.begin(REQUEST, PIN)).id != one.id
    await builds.close()


async def test_a_failure_has_the_id_of_its_build(world: World) -> None:
    builds = world.coordinator()
    world.error = BuildFailed("git.drv", ("no",), "failed")
    world.may_end.clear()
    one = await builds.begin(REQUEST, PIN)
    world.may_end.set()
    for _ in range(2):
        with pytest.raises(BuildFailed) as raised:
            await builds.image(REQUEST, PIN)
        assert raised.value.build == one.id
    assert await builds.begin(REQUEST, PIN) == one
    assert world.builds == 1


async def test_closing_fails_running_builds(world: World) -> None:
    builds = world.coordinator()
    world.may_end.clear()
    one = await builds.begin(REQUEST, PIN)
    await builds.close()
    (failed,) = [event for build, event in world.seen if build == one and isinstance(event, Failed)]
    assert isinstance(failed.error, ShuttingDown)


async def test_an_unexpected_error_is_an_internal_error_with_details_in_the_log_only(world: World) -> None:
    builds = world.coordinator()
    world.error = KeyError("/var/lib/secret")

    async def pull() -> Image:
        enter_request(RequestContext("pull"))
        return await builds.image(REQUEST, PIN)

    with capture_logs() as lines, pytest.raises(InternalError) as raised:
        await asyncio.create_task(pull())
    message = "internal error; the server's log has the details of request pull"
    (failed,) = [event for _, event in world.seen if isinstance(event, Failed)]
    assert str(raised.value) == message
    assert failed.error is raised.value
    assert [(line["log_level"], line["exc_info"]) for line in lines] == [("error", True)]
    world.error = None
    await builds.image(REQUEST, PIN)


async def test_an_unexpected_error_ends_an_unattended_build(world: World) -> None:
    builds = world.coordinator()
    world.error = KeyError("/var/lib/secret")
    world.may_end.clear()
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    build = await asyncio.create_task(builds.begin(REQUEST, PIN), context=Context())
    world.may_end.set()
    await settle()
    gc.collect()
    (failed,) = [event for one, event in world.seen if one == build and isinstance(event, Failed)]
    assert str(failed.error) == "internal error; the server's log has the details"
    assert unhandled == []


async def test_builds_beyond_slots_and_queue_are_rejected(world: World) -> None:
    world.slots = Slots(2, 3)
    world.may_end.clear()
    builds = world.coordinator()
    requests = [asyncio.ensure_future(builds.image(parse_image_name(f"p{n}"), PIN)) for n in range(8)]
    await settle()
    assert (world.running, [request.done() for request in requests]) == (2, [False] * 5 + [True] * 3)
    for request in requests[5:]:
        with pytest.raises(TooBusy, match="NIXERY_MAX_BUILDS"):
            await request
    # Joining a build takes no place in the queue.
    same = [asyncio.ensure_future(builds.image(parse_image_name(f"p{n}"), PIN)) for n in (0, 3, 4)]
    await settle()
    assert not any(request.done() for request in same)
    world.may_end.set()
    await asyncio.gather(*requests[:5], *same)
    assert (world.builds, world.most_running) == (5, 2)


async def test_a_queued_build_reports_each_change_of_its_position(world: World) -> None:
    world.slots = Slots(1, 2)
    world.may_end.clear()
    builds = world.coordinator()
    requests = [asyncio.ensure_future(builds.image(parse_image_name(f"p{n}"), PIN)) for n in range(3)]
    await settle()
    world.may_end.set()
    await asyncio.gather(*requests)
    assert world.of("p2")[:3] == [Queued(2), Queued(1), Started()]
    assert not [event for event in world.of("p0") if isinstance(event, Queued)]


async def test_a_rejected_build_is_not_remembered_as_a_failure(world: World) -> None:
    world.slots = Slots(1, 0)
    world.may_end.clear()
    builds = world.coordinator()
    first = asyncio.ensure_future(builds.image(REQUEST, PIN))
    await settle()
    with pytest.raises(TooBusy):
        await builds.image(parse_image_name("htop"), PIN)
    world.may_end.set()
    await first
    await builds.image(parse_image_name("htop"), PIN)


async def test_a_build_times_out_and_time_in_the_queue_does_not_count(
    world: World,
) -> None:
    world.slots, world.seconds = Slots(1, 5), 0.2
    world.may_end.clear()
    builds = world.coordinator()
    requests = [asyncio.ensure_future(builds.image(parse_image_name(f"p{n}"), PIN)) for n in range(4)]
    with pytest.raises(BuildDeadlineExceeded, match="NIXERY_BUILD_TIMEOUT"):
        async with asyncio.timeout(_TIMEOUT):
            await requests[0]
    assert world.running == 1
    world.may_end.set()
    await requests[3]
    assert world.running == 0
    assert [build.request.requested for build, event in world.seen if isinstance(event, Failed)] == [("p0",)]


async def test_closing_ends_queued_builds(world: World) -> None:
    world.slots = Slots(1, 5)
    world.may_end.clear()
    builds = world.coordinator()
    requests = [asyncio.ensure_future(builds.image(parse_image_name(f"p{n}"), PIN)) for n in range(3)]
    await settle()
    await builds.close()
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ShuttingDown] * 3
    assert world.running == 0


async def test_a_build_has_the_id_of_its_first_request_and_others_join_it(world: World) -> None:
    builds = world.coordinator()

    async def ask(identity: str) -> bool:
        context = RequestContext(identity)
        enter_request(context)
        await builds.image(REQUEST, PIN)
        return context.waited

    assert all(await asyncio.gather(ask("one"), ask("two"), ask("three")))
    assert sorted(world.seen_by, key=lambda seen: str(seen[0])) == [
        ("one", Started()),
        ("three", Joined("one")),
        ("two", Joined("one")),
    ]
    assert {build.request_id for build, _ in world.seen} == {"one"}
    assert len({build.id for build, _ in world.seen}) == 1
    world.seen_by.clear()
    await asyncio.create_task(ask("four"))
    assert world.seen_by == [("four", Started())]


async def test_a_build_without_a_request_has_no_request_id(world: World) -> None:
    builds = world.coordinator()
    # Without the context of this test.
    no_request = Context()
    asked = [asyncio.create_task(builds.image(REQUEST, PIN), context=no_request) for _ in range(2)]
    await asyncio.gather(*asked)
    assert world.seen_by == [(None, Started())]


async def test_an_unattended_build_is_queued(world: World) -> None:
    world.slots = Slots(1, 1)
    world.may_end.clear()
    builds = world.coordinator()
    first, second = [await builds.begin(parse_image_name(f"p{n}"), PIN) for n in range(2)]
    assert world.of("p0") == [Requested(), Started()]
    assert world.of("p1") == [Requested(), Queued(1)]
    assert first.id != second.id
    await builds.close()


async def test_an_unattended_build_is_rejected_when_the_queue_is_full(world: World) -> None:
    world.slots = Slots(1, 0)
    world.may_end.clear()
    builds = world.coordinator()
    running = await builds.begin(REQUEST, PIN)
    asked = [builds.begin(parse_image_name("htop"), PIN) for _ in range(2)]
    for refused in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(refused, TooBusy)
    assert await builds.begin(REQUEST, PIN) is running
    world.may_end.set()
    await builds.image(REQUEST, PIN)
    await builds.begin(parse_image_name("htop"), PIN)
    await builds.close()


async def test_a_pull_joins_a_build_that_another_request_began(world: World) -> None:
    world.may_end.clear()
    builds = world.coordinator()

    async def begin() -> Build:
        enter_request(RequestContext("post"))
        return await builds.begin(REQUEST, PIN)

    async def pull() -> None:
        enter_request(RequestContext("pull"))
        await builds.image(REQUEST, PIN)

    build = await asyncio.create_task(begin())
    await settle()
    pulling = asyncio.create_task(pull())
    await settle()
    world.may_end.set()
    await pulling
    assert build.request_id == "post"
    assert world.seen_by == [("post", Requested()), ("post", Started()), ("pull", Joined("post"))]


class SlowCache:
    """A ``BuildCache`` that finds nothing, and answers when the test allows it."""

    def __init__(self) -> None:
        self.running = self.most_running = 0
        self.looked_up: list[str] = []
        self.may_answer = asyncio.Event()

    async def find_recent(self, pin: Pin, request: ImageRequest) -> None: ...

    async def find(self, _: Pin, request: ImageRequest) -> None:
        self.looked_up += request.requested
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        await self.may_answer.wait()
        self.running -= 1

    async def add(self, pin: Pin, request: ImageRequest, image: Image) -> None: ...


async def test_made_up_names_of_one_client_do_not_delay_look_ups_of_others(world: World) -> None:
    cache = SlowCache()
    bounds = BuildBounds(Slots(1000, 0), look_ups=Slots(4, 2048, busy=TooBusy.IMAGES))
    builds = BuildCoordinator(cache, world, [world], bounds)  # type: ignore[arg-type]

    def ask(client: str, name: str) -> asyncio.Task[Image]:
        async def asked() -> Image:
            enter_request(RequestContext(name, Client(client)))
            return await builds.image(parse_image_name(name), PIN)

        return asyncio.get_running_loop().create_task(asked(), context=Context())

    greedy = [ask("greedy", f"made-up-{number}") for number in range(500)]
    await settle()
    modest = ask("modest", "git")
    await settle()
    cache.may_answer.set()
    await asyncio.gather(modest, *greedy)
    assert cache.most_running == 4
    # It gets the next free slot, instead of waiting for all others.
    assert cache.looked_up.index("git") <= 8


class Quota:
    """Decides about builds as a test says, and remembers how they ended."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.admitted: list[str] = []
        self.ended: list[int | None] = []

    def admit(self, clients: Collection[Client]) -> Leave:
        for client in clients:
            if client.name not in self.refused:
                self.admitted.append(client.name)
                return self.ended.append
        raise QuotaExceeded(QuotaExceeded.BUILDS, 0, 10)


@pytest.fixture
def quota(world: World) -> Quota:
    found = Quota()
    world.admit = found.admit
    return found


def pull(builds: BuildCoordinator, client: str, name: str = "git") -> asyncio.Task[Image]:
    async def pulled() -> Image:
        enter_request(RequestContext(client, Client(client)))
        return await builds.image(parse_image_name(name), PIN)

    return asyncio.get_running_loop().create_task(pulled(), context=Context())


async def test_a_build_without_quota_does_not_start_and_is_not_remembered_as_a_failure(
    world: World, quota: Quota
) -> None:
    builds = world.coordinator()
    quota.refused = {"greedy"}
    with pytest.raises(QuotaExceeded, match="builds an hour are limited to 0"):
        await pull(builds, "greedy")
    enter_request(RequestContext("greedy", Client("greedy")))
    with pytest.raises(QuotaExceeded):
        await builds.begin(REQUEST, PIN)
    assert not world.builds
    await pull(builds, "modest")
    assert (quota.admitted, world.builds) == (["modest"], 1)


async def test_a_build_counts_with_the_size_of_its_image_and_once_for_all_that_join(
    world: World, quota: Quota
) -> None:
    builds = world.coordinator()
    world.may_end.clear()
    tasks = [pull(builds, client) for client in ("one", "two", "three")]
    await settle()
    world.may_end.set()
    (image, *_) = await asyncio.gather(*tasks)
    assert (quota.admitted, quota.ended) == (["one"], [sum(size for _, size in image.parts)])


async def test_a_failed_build_counts_and_one_that_never_started_does_not(world: World, quota: Quota) -> None:
    world.slots = Slots(1, 0)
    builds = world.coordinator()
    world.may_end.clear()
    world.error = BuildFailed("git.drv", (), "failed")
    running = pull(builds, "one")
    await settle()
    with pytest.raises(TooBusy):
        await pull(builds, "two", "curl")
    assert quota.ended == [None]
    world.may_end.set()
    with pytest.raises(BuildFailed):
        await running
    assert quota.ended == [None, 0]


async def test_the_quota_of_one_client_does_not_refuse_the_builds_of_others(
    world: World, quota: Quota
) -> None:
    cache = SlowCache()
    bounds = BuildBounds(Slots(10, 0), admit=quota.admit)
    builds = BuildCoordinator(cache, world, [world], bounds)  # type: ignore[arg-type]
    quota.refused = {"greedy"}
    greedy = pull(builds, "greedy")
    await settle()
    modest = pull(builds, "modest")
    await settle()
    cache.may_answer.set()
    await asyncio.gather(greedy, modest)
    assert quota.admitted == ["modest"]


async def test_an_unattended_build_is_not_refused_for_the_quota_of_the_client_that_began_it(
    world: World, quota: Quota
) -> None:
    cache = SlowCache()
    bounds = BuildBounds(Slots(10, 0), admit=quota.admit)
    builds = BuildCoordinator(cache, world, [world], bounds)  # type: ignore[arg-type]
    quota.refused = {"greedy"}

    def begin(client: str) -> asyncio.Task[Build]:
        async def begun() -> Build:
            enter_request(RequestContext(client, Client(client)))
            return await builds.begin(REQUEST, PIN)

        return asyncio.get_running_loop().create_task(begun(), context=Context())

    greedy, modest = begin("greedy"), begin("modest")
    await settle()
    cache.may_answer.set()
    await modest
    with pytest.raises(QuotaExceeded):
        await greedy
    assert quota.admitted == ["modest"]


async def test_an_image_that_another_server_built_meanwhile_does_not_count(
    world: World, quota: Quota
) -> None:
    config = image_config(REQUEST.platform.architecture, ExecutionParameters(), [])
    stored = Image(image_manifest(config, []), None)
    found: dict[str, Image] = {}

    class Cache:
        async def find_recent(self, *_: object) -> None: ...

        async def find(self, _: Pin, request: ImageRequest) -> Image | None:
            return found.get(request.requested[0])

        async def add(self, _: Pin, __: ImageRequest, image: Image) -> Image:
            return image

    bounds = BuildBounds(Slots(1, 1), admit=quota.admit)
    builds = BuildCoordinator(Cache(), world, [world], bounds)  # type: ignore[arg-type]
    world.may_end.clear()
    first, second = pull(builds, "one", "git"), pull(builds, "two", "curl")
    await settle()
    found["curl"] = stored
    world.may_end.set()
    await asyncio.gather(first, second)
    assert quota.admitted == ["one", "two"]
    assert sorted(quota.ended, key=lambda size: size is None)[1:] == [None]


async def _request(builds: BuildCoordinator, client: str) -> Image:
    enter_request(RequestContext(client, Client(client)))
    return await builds.image(REQUEST, PIN)


async def test_a_cancelled_build_ends_for_all_and_the_next_request_starts_a_new_one(world: World) -> None:
    world.may_end.clear()
    builds = world.coordinator()
    waiting = [asyncio.create_task(_request(builds, client)) for client in ("alice", "bob")]
    await settle()
    build = world.seen[0][0]
    assert builds.requesters(build.id) == (Client("alice"), Client("bob"))
    reason = BuildCancelled("an administrator")
    assert builds.cancel(build.id, reason)
    assert builds.cancel(build.id, BuildCancelled("another administrator"))
    # Not the answer of a client that comes before the build has ended.
    later = asyncio.create_task(_request(builds, "carol"))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert outcomes == [reason, reason]
    assert reason.build == build.id
    await settle()
    assert (world.builds, world.running) == (2, 1)
    world.may_end.set()
    assert isinstance(await later, Image)
    (failed,) = [event for _, event in world.seen if isinstance(event, Failed)]
    assert failed.error is reason
    assert builds.requesters(build.id) is None
    assert not builds.cancel(build.id, reason)
    assert (await builds.begin(REQUEST, PIN)).id != build.id


async def test_a_build_is_cancelled_in_the_queue(world: World) -> None:
    world.slots = Slots(1, 5)
    world.may_end.clear()
    builds = world.coordinator()
    first = asyncio.create_task(builds.image(parse_image_name("htop"), PIN))
    await settle()
    queued = await builds.begin(REQUEST, PIN)
    last = asyncio.create_task(builds.image(parse_image_name("jq"), PIN))
    await settle()
    assert builds.cancel(queued.id, BuildCancelled("an administrator"))
    await settle()
    assert isinstance(world.of("git")[-1], Failed)
    assert world.of("jq")[-1] == Queued(1)
    world.may_end.set()
    await asyncio.gather(first, last)
    assert world.builds == 2


async def test_a_build_that_others_began_is_begun_again_after_its_cancellation(world: World) -> None:
    world.may_end.clear()
    builds = world.coordinator()
    cancelled = await builds.begin(REQUEST, PIN)
    assert builds.cancel(cancelled.id, BuildCancelled("an administrator"))
    again = await builds.begin(REQUEST, PIN)
    assert again.id != cancelled.id
    world.may_end.set()
    await builds.image(REQUEST, PIN)
    assert world.builds == 2
