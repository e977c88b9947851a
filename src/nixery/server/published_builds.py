"""Reports of builds for clients: names and logs hidden where they are not public, and bounded streams of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

from nixery.access.identity import Right
from nixery.access.policy import current_access, note_refusal
from nixery.builds.history import BuildHistory, BuildReport, Line
from nixery.builds.slots import Slots
from nixery.errors import InvalidName, TooBusy
from nixery.image.name import requests_for
from nixery.image.platform import Platform
from nixery.request_context import INTERNAL, Client, current_request

# Retry time in seconds, after which another stream may have ended.
_RETRY_AFTER = 5

# Concurrent answers made of reports, and waiting ones: each blocks the event loop for milliseconds.
_AT_ONCE, _QUEUE = 1, 64

# Concurrent look-ups of builds of other servers in the storage, and waiting ones.
_LOOK_UPS, _LOOK_UP_QUEUE = 8, 64

_HIDDEN = "hidden"

_Change = tuple[BuildReport, Sequence[Line]]


@dataclass(frozen=True, slots=True)
class FollowerBounds:
    """Limits on open streams of events, each of which is a connection: in total, and for one client."""

    total: int
    per_client: int


class PublishedBuilds:
    """Reports of builds, without names and logs unless those are public.

    Args:
        history: of builds.
        bounds: of the streams.
        public: whether every client may see the names and logs of builds.
    """

    def __init__(self, history: BuildHistory, bounds: FollowerBounds, *, public: bool) -> None:
        self._history = history
        self._bounds = bounds
        # By client, the oldest first; done when the stream has to end to make room.
        self._followers: dict[Client, list[asyncio.Future[None]]] = {}
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.REPORTS)
        self._look_ups = Slots(_LOOK_UPS, _LOOK_UP_QUEUE, busy=TooBusy.REPORTS)
        self.public = public

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which to make an answer of reports; see ``Slots.turn``.

        Raises:
            TooBusy: on entering the context: too many requests are waiting.
        """
        return self._slots.turn()

    def get(self, build: str) -> BuildReport | None:
        """Return the report of a build in memory; ``None`` if there is none."""
        report = self._history.get(build)
        return report and self._visible(report)

    async def find(self, build: str) -> BuildReport | None:
        """Return the report of a build of any server of the storage; ``None`` if it is unknown.

        Raises:
            TooBusy: too many look-ups are waiting.
        """
        if self._history.get(build) is None:
            async with self._look_ups.slot():
                report = await self._history.find(build)
        else:
            report = await self._history.find(build)
        visible = report and self._visible(report)
        if report is not None and visible is None:
            note_refusal(Right.SEE_BUILDS, report.name, f"no rule allows them to see build {report.id}")
        return visible

    async def refresh(self) -> None:
        """Have ``recent`` include the builds of the other servers; wait a second for them at most."""
        await self._history.refresh()

    async def shared(self, builds: Sequence[str]) -> None:
        """Wait until the other servers can find new builds, for two seconds at most."""
        await self._history.shared(builds)

    def recent(self) -> Sequence[BuildReport]:
        """Return the reports in memory that the asker may see, the latest first; see ``refresh``."""
        reports = (self._visible(report) for report in self._history.recent())
        return [report for report in reports if report is not None]

    @property
    def shows_names(self) -> bool:
        """Whether the asker may see names and logs: of the builds that rules let them see, or of all if those are public."""
        return current_access().is_restricted or self.public

    async def follow(self, build: str, after: int) -> AsyncGenerator[_Change, None]:
        """See ``BuildHistory.follow``.

        Ends early to make room for a client that has fewer streams, and when rules change: the client then asks again.

        Raises:
            TooBusy: too many streams are open.
        """
        request = current_request()
        client = request.client if request is not None else INTERNAL
        self._make_room(client)
        displaced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.setdefault(client, []).append(displaced)
        try:
            async with aclosing(self._history.follow(build, after)) as changes:
                while (change := await _next_change(displaced, anext(changes, None))) is not None:
                    if not current_access().is_in_force:
                        break
                    report, lines = change
                    yield self._shown(report), lines if self.shows_names else ()
        finally:
            self._forget(client, displaced)

    def _make_room(self, client: Client) -> None:
        ours = len(self._followers.get(client, ()))
        if ours >= self._bounds.per_client < self._bounds.total:
            raise TooBusy(self._bounds.per_client, ours, _RETRY_AFTER, TooBusy.SHARE_OF_FOLLOWERS)
        followers = sum(map(len, self._followers.values()))
        if followers < self._bounds.total:
            return
        greediest = max(self._followers, key=lambda one: len(self._followers[one]), default=client)
        if len(self._followers.get(greediest, ())) <= ours + 1:
            raise TooBusy(self._bounds.total, followers, _RETRY_AFTER, TooBusy.FOLLOWERS)
        oldest = self._followers[greediest][0]
        self._forget(greediest, oldest)
        oldest.set_result(None)

    def _forget(self, client: Client, follower: asyncio.Future[None]) -> None:
        followers = self._followers.get(client, [])
        if follower in followers:
            followers.remove(follower)
            if not followers:
                del self._followers[client]

    def _visible(self, report: BuildReport) -> BuildReport | None:
        if not current_access().is_restricted:
            return self._shown(report)
        return report if is_allowed(Right.SEE_BUILDS, report) else None

    def _shown(self, report: BuildReport) -> BuildReport:
        if self.shows_names:
            return report
        error = report.error and _HIDDEN
        return report.model_copy(
            update={
                "name": _HIDDEN,
                "revision": _HIDDEN,  # may be of a branch that only its client knows
                "log": [],
                "dropped": 0,
                "building": [],
                "builders": [],
                "slowest": [],
                "usual": None,
                "tag": None,
                "failed": None,
                "tail": [],
                "error": error,
                "failure": None,
                "manifest": None,
                "request_id": None,
            }
        )


def is_allowed(right: Right, report: BuildReport) -> bool:
    """Whether the asker has a right over the image of a build."""
    try:
        requests = requests_for(report.name, (Platform.parse(report.platform),))
    except (InvalidName, ValueError):
        return False  # of another server, which may have written anything
    return current_access().allows(right, requests, report.tag or "latest")


async def _next_change(ended: asyncio.Future[None], change: Awaitable[_Change | None]) -> _Change | None:
    """Wait for a change; return ``None`` at the end of the changes, or if the future is done first."""
    waiting = asyncio.ensure_future(change)
    either: set[asyncio.Future[Any]] = {waiting, ended}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() and not ended.done() else None
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
