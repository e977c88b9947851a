"""Builds and the stages they go through, made from the events of a build."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayersComplete,
    Queued,
    Realised,
    Reused,
    Started,
    Stored,
)


class Stage(StrEnum):
    """What a build is doing."""

    QUEUE = "queue"
    EVALUATE = "evaluate"
    REALISE = "realise"
    GROUP = "group"
    PACK = "pack"
    STORE = "store"


# By event: the stage that begins with it, which ends the one before.
_BEGINS: Mapping[type[BuildEvent], Stage] = {
    Queued: Stage.QUEUE,
    Started: Stage.EVALUATE,
    Evaluated: Stage.REALISE,
    Realised: Stage.GROUP,
    Grouped: Stage.PACK,
    LayersComplete: Stage.STORE,
}


@dataclass(eq=False, slots=True)
class StagedBuild:
    """A build that goes on.

    Attributes:
        build: which one.
        stage: where it is.
        since: when that began, in seconds of the observer's clock.
    """

    build: Build
    stage: Stage
    since: float


class StageListener(Protocol):
    """Is told of builds, of each in the context of the task that builds."""

    def stage_began(self, build: StagedBuild) -> None:
        """Take note of a stage; with the first one, of a build."""
        ...

    def stage_ended(self, build: StagedBuild, seconds: float) -> None:
        """Take note of the end of the stage that a build is in still."""
        ...

    def build_ended(self, build: StagedBuild | None, end: Stored | Reused | Failed | None) -> None:
        """Take note of the end of a build.

        Args:
            build: in its last stage; ``None`` if it failed before its first.
            end: with which event; ``None`` without any: it has a defect.
        """
        ...


class Stages:
    """The ``BuildObserver`` that knows which builds go on.

    Args:
        listeners: are told.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, listeners: Sequence[StageListener], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listeners = listeners
        self._clock = clock
        self._going_on: dict[str, StagedBuild] = {}

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        staged = self._going_on.get(build.id)
        stage = _BEGINS.get(type(event))
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
        self._going_on[staged.build.id] = staged
        # The first event comes from the build's own task.
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: self._lost(staged))
        for listener in self._listeners:
            listener.stage_began(staged)

    def _lost(self, staged: StagedBuild) -> None:
        # Ended by an error that is none of ours: then no event has told.
        if self._going_on.get(staged.build.id) is staged:
            self._end(staged, None)

    def _end(self, staged: StagedBuild, end: Stored | Reused | Failed | None) -> None:
        del self._going_on[staged.build.id]
        self._end_stage(staged)
        for listener in self._listeners:
            listener.build_ended(staged, end)

    def _end_stage(self, staged: StagedBuild) -> None:
        for listener in self._listeners:
            listener.stage_ended(staged, self._clock() - staged.since)
