"""The stage that each build in progress is in, for metrics and traces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nixery.builds.events import Build, BuildEvent, Failed, Reused, Stage, Stored, stage_begun_by

# How a build ended; ``None`` if it ended without an event, because of a bug.
BuildEnd = Stored | Reused | Failed | None


@dataclass(eq=False, slots=True)
class StagedBuild:
    """A build in progress.

    Attributes:
        build: the build.
        stage: its current stage.
        since: when the stage began, in seconds of the observer's clock.
    """

    build: Build
    stage: Stage
    since: float


class StageListener(Protocol):
    """Receives the stages of builds, in the context of the task that builds."""

    def stage_began(self, build: StagedBuild) -> None:
        """Receive the beginning of a stage; of the first one, also that of the build."""
        ...

    def stage_ended(self, build: StagedBuild, seconds: float) -> None:
        """Receive the end of the current stage of a build."""
        ...

    def build_ended(self, build: StagedBuild | None, end: BuildEnd) -> None:
        """Receive the end of a build.

        Args:
            build: in its last stage; ``None`` if it failed before its first.
            end: its last event.
        """
        ...


class Stages:
    """The ``BuildObserver`` that times the stages of builds.

    Args:
        listeners: receive the stages.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, listeners: Sequence[StageListener], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listeners = listeners
        self._clock = clock
        self._in_progress: dict[str, StagedBuild] = {}

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        staged = self._in_progress.get(build.id)
        stage = stage_begun_by(event)
        match event:
            case Stored() | Reused() | Failed() if staged is not None:
                self._end(staged, event)
            case Failed():
                for listener in self._listeners:
                    listener.build_ended(None, event)
            case _ if stage is not None and staged is None:
                self._begin(StagedBuild(build, stage, self._clock()))
            case _ if stage is not None and staged is not None and stage is not staged.stage:
                self._end_stage(staged)
                staged.stage, staged.since = stage, self._clock()
                for listener in self._listeners:
                    listener.stage_began(staged)

    def _begin(self, staged: StagedBuild) -> None:
        self._in_progress[staged.build.id] = staged
        # The first event comes from the build's own task. A bug may end the task without an event.
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: self._end_without_event(staged))
        for listener in self._listeners:
            listener.stage_began(staged)

    def _end_without_event(self, staged: StagedBuild) -> None:
        if self._in_progress.get(staged.build.id) is staged:
            self._end(staged, None)

    def _end(self, staged: StagedBuild, end: BuildEnd) -> None:
        del self._in_progress[staged.build.id]
        self._end_stage(staged)
        for listener in self._listeners:
            listener.build_ended(staged, end)

    def _end_stage(self, staged: StagedBuild) -> None:
        for listener in self._listeners:
            listener.stage_ended(staged, self._clock() - staged.since)
