"""Who may cancel a build: with rules, without any, and through the listener of the operator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from nixery.access.audit import AuditLog
from nixery.access.identity import ANONYMOUS, Identity, Kind, Limits, Right
from nixery.access.policy import Policy, Rule, enter_access
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.events import Build, Evaluated, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.errors import AccessDenied, BuildCancelled, LoginRequired
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from tests.unit.server.conftest import PIN

_EVERYTHING = frozenset(Right)
_BUILDERS = frozenset({Right.PULL, Right.BUILD, Right.SEE_BUILDS})

_RULES = Policy(
    [
        Rule(("user:root",), _EVERYTHING),
        Rule(("user:git-admin",), _EVERYTHING, ("git",)),
        Rule(("user:jq-admin",), _EVERYTHING, ("jq",)),
        Rule(("everyone",), _BUILDERS),
    ]
)


class World:
    """A server with a running build; stands in for ``BuildCoordinator``."""

    def __init__(
        self, history: BuildHistory, audit: AuditLog | None = None, *, private: bool = False
    ) -> None:
        self.running: Mapping[str, tuple[Client, ...]] = {}
        self.reasons: list[str] = []
        self.history = history
        self.build = Build.of(requests_for("git", (AMD64,))[0], PIN, "latest")
        history.observe(self.build, Started())
        history.observe(self.build, Evaluated(()))
        published = PublishedBuilds(history, FollowerBounds(10, 10), public=True)
        coordinator = cast("BuildCoordinator", self)
        self.cancellation = BuildCancellation(coordinator, published, audit, private=private)

    def requested_by(self, *clients: str) -> None:
        self.running = {self.build.id: tuple(map(Client, clients))}

    def requesters(self, build: str) -> tuple[Client, ...] | None:
        return self.running.get(build)

    def cancel(self, build: str, reason: BuildCancelled) -> bool:
        if build in self.running:
            self.reasons.append(str(reason))
        return build in self.running

    async def post(self, host: str = "registry.example", *, forwarded: bool = False) -> Response:
        """Cancel the build, and check that the page has the button only if that is possible."""
        path = f"/api/v1/builds/{self.build.id}/cancel"
        request = Request("POST", path, {"host": host}, forwarded=forwarded)
        report = self.history.get(self.build.id)
        assert report is not None
        allowed = self.cancellation.allows(request, report)
        try:
            answer = await self.cancellation.cancel(request, self.build.id)
        except (LoginRequired, AccessDenied):
            assert not allowed
            raise
        assert allowed == (answer.status == 202)
        return answer


@pytest.fixture
async def world(history: BuildHistory) -> World:
    return World(history)


def _as(name: str, limits: Limits | None = None) -> None:
    identity = Identity(Kind.PASSWORD, name, limits=limits) if name else ANONYMOUS
    enter_access(_RULES.access(identity))
    enter_request(RequestContext("1", Client(f"user:{name}" if name else "192.0.2.7")))


async def test_who_requested_it_alone_may_cancel_it(world: World) -> None:
    world.requested_by("user:alice")
    _as("alice")
    assert (await world.post()).status == 202
    expected = (
        "the build was cancelled by the user who requested it; pull the image again to start a new build"
    )
    assert world.reasons == [expected]


async def test_a_build_that_others_wait_for_goes_on(world: World) -> None:
    world.requested_by("user:alice", "192.0.2.7")
    _as("alice")
    answer = await world.post()
    assert isinstance(answer, BytesResponse)
    assert answer.status == 409
    assert "others have requested this build, too" in answer.content.decode()
    assert not world.reasons


@pytest.mark.parametrize("name", ["root", "git-admin"])
async def test_who_administers_the_packages_may_cancel_it_for_all(world: World, name: str) -> None:
    world.requested_by("user:alice", "192.0.2.7")
    _as(name)
    assert (await world.post()).status == 202
    assert "cancelled by an administrator" in world.reasons[0]


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("bob", None),
        ("jq-admin", None),
        ("root", Limits(frozenset({Right.PULL, Right.SEE_BUILDS}))),
        ("alice", Limits(frozenset({Right.PULL, Right.SEE_BUILDS}))),
    ],
)
async def test_others_may_not(world: World, name: str, limits: Limits | None) -> None:
    world.requested_by("user:alice")
    _as(name, limits)
    with pytest.raises(AccessDenied, match="may not cancel this build"):
        await world.post()
    assert not world.reasons


async def test_who_sent_no_credentials_is_asked_for_some(world: World) -> None:
    # Many people may share the address that requested it.
    world.requested_by("192.0.2.7")
    _as("")
    with pytest.raises(LoginRequired):
        await world.post()


async def test_what_the_asker_may_not_see_is_unknown(world: World) -> None:
    world.requested_by("user:alice")
    enter_access(Policy([Rule(("everyone",), frozenset({Right.PULL}))]).access(ANONYMOUS))
    answer = await world.cancellation.cancel(Request("POST", "/"), world.build.id)
    assert answer.status == 404


async def test_without_rules_only_the_machine_itself_may(world: World, history: BuildHistory) -> None:
    world.requested_by("127.0.0.1")
    with pytest.raises(AccessDenied):
        await world.post("127.0.0.1:8080")
    local = World(history, private=True)
    local.requested_by("127.0.0.1")
    # A proxy forwards requests of anybody; and the name may be one of another site that leads here.
    for host, forwarded in (("127.0.0.1:8080", True), ("evil.example", False)):
        with pytest.raises(AccessDenied):
            await local.post(host, forwarded=forwarded)
    assert (await local.post("localhost:8080")).status == 202
    assert "cancelled by the operator of the server" in local.reasons[0]


async def test_the_operator_may_through_the_listener_for_operators(world: World) -> None:
    world.requested_by("192.0.2.7")
    path = f"/api/v1/builds/{world.build.id}/cancel"
    answer = world.cancellation.answer_operator
    assert (await answer(Request("GET", path))).status == 405
    assert (await answer(Request("POST", f"/api/v1/builds/{world.build.id}"))).status == 404
    assert (await answer(Request("POST", f"/api/v1/builds/{'0' * 20}/cancel"))).status == 404
    assert not world.reasons
    assert (await answer(Request("POST", path))).status == 202
    assert "cancelled by the operator of the server" in world.reasons[0]


async def test_a_build_that_has_ended_or_runs_elsewhere_is_a_conflict(world: World) -> None:
    path = f"/api/v1/builds/{world.build.id}/cancel"
    elsewhere = await world.cancellation.answer_operator(Request("POST", path))
    assert isinstance(elsewhere, BytesResponse)
    assert (elsewhere.status, b"another server" in elsewhere.content) == (409, True)
    world.history.observe(world.build, Failed(BuildCancelled("an administrator")))
    ended = await world.cancellation.answer_operator(Request("POST", path))
    assert isinstance(ended, BytesResponse)
    assert (ended.status, b"ended already" in ended.content) == (409, True)


async def test_the_audit_log_names_who_cancelled_it(history: BuildHistory, tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit")
    world = World(history, audit)
    world.requested_by("user:alice")
    _as("bob")
    with pytest.raises(AccessDenied):
        await world.post()
    _as("alice")
    await world.post()
    audit.close()
    (line,) = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    found = {name: line[name] for name in ("event", "identity", "build", "name", "platform", "tag")}
    assert found == {
        "event": "cancelled",
        "identity": "alice",
        "build": world.build.id,
        "name": "git",
        "platform": "linux/amd64",
        "tag": "latest",
    }
