"""Which builds an identity may see."""

from __future__ import annotations

from nixery.access.identity import Identity, Kind, Right
from nixery.access.policy import Policy, Rule, enter_access
from nixery.builds.descriptions import Shared
from nixery.builds.events import Build, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.errors import NixeryError
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.server.api import visible
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from tests.unit.server.conftest import PIN


async def test_events_end_when_the_rules_change(history: BuildHistory) -> None:
    policy = Policy([Rule(("everyone",), frozenset({Right.SEE_BUILDS}))])
    enter_access(policy.access(Identity(Kind.PASSWORD, "bob")))
    builds = PublishedBuilds(history, FollowerBounds(10, 10), public=False)
    build = Build.of(requests_for("git", [AMD64])[0], PIN)
    history.observe(build, Started())
    changes = builds.follow(build.id, 0)
    report, _ = await anext(changes)
    assert report.name == "git"
    policy.is_in_force = False
    history.observe(build, Failed(NixeryError("a secret of the log")))
    assert [change async for change in changes] == []


async def test_images_that_share_layers_are_shown_at_their_tag(history: BuildHistory) -> None:
    for tag in ("latest", "private"):
        history.observe(Build.of(requests_for("git", [AMD64])[0], PIN, tag), Started())
    shared = [Shared(report, 1, 1) for report in history.recent()]
    assert len(visible(shared)) == 2
    rules = Policy([Rule(("everyone",), frozenset({Right.PULL}), tags=("latest",))])
    enter_access(rules.access(Identity(Kind.PASSWORD, "bob")))
    assert [one.build.tag for one in visible(shared)] == ["latest"]
    # Another server may have written anything.
    planted = shared[0].build.model_copy(update={"name": "../x"})
    assert visible([Shared(planted, 1, 1)]) == []
