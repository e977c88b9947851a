"""Builds and the stages they go through, made from the events of a build."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nixery.image.request import ImageRequest
from nixery.pipeline.events import (
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
class Build:
    """A build that goes on.

    Attributes:
        request: what for.
        stage: where it is.
        since: when that began, in seconds of the observer's clock.
    """

    request: ImageRequest
    stage: Stage
    since: float


class StageListener(Protocol):
    """Is told of builds, of each in the context of the task that builds."""

    def stage_began(self, build: Build) -> None:
        """Take note of a stage; with the first one, of a build."""
        ...

    def stage_ended(self, build: Build, seconds: float) -> None:
        """Take note of the end of the stage that a build is in still."""
        ...

    def build_ended(self, build: Build | None, end: Stored | Reused | Failed | None) -> None:
        """Take note of the end of a build.

        Args:
            build: in its last stage; ``None`` if it failed before its first.
            end: with which event; ``None`` without any: it was cancelled, or has a defect.
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
        # Events come from the build's task and those that it starts. Two builds for one request may go on at the same time,
        # for different states of the package source.
        self._build: ContextVar[Build | None] = ContextVar("nixery_build", default=None)
        self._going_on: set[Build] = set()

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        build = self._build.get()
        stage = _BEGINS.get(type(event))
        match event:
            case Stored() | Reused() | Failed() if build is not None:
                self._end(build, event)
            case Failed():
                for listener in self._listeners:
                    listener.build_ended(None, event)
            case _ if stage is not None and build is None:
                self._begin(Build(request, stage, self._clock()))
            case _ if stage is not None and build is not None and stage is not build.stage:
                self._end_stage(build)
                build.stage, build.since = stage, self._clock()
                for listener in self._listeners:
                    listener.stage_began(build)

    def _begin(self, build: Build) -> None:
        self._build.set(build)
        self._going_on.add(build)
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: self._lost(build))
        for listener in self._listeners:
            listener.stage_began(build)

    def _lost(self, build: Build) -> None:
        # Cancelled, or ended by an error that is none of ours: then no event has told.
        if build in self._going_on:
            self._end(build, None)

    def _end(self, build: Build, end: Stored | Reused | Failed | None) -> None:
        self._build.set(None)
        self._going_on.discard(build)
        self._end_stage(build)
        for listener in self._listeners:
            listener.build_ended(build, end)

    def _end_stage(self, build: Build) -> None:
        for listener in self._listeners:
            listener.stage_ended(build, self._clock() - build.since)
