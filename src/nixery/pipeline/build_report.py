"""What is known of a build, for people and for programs that watch it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, Field

from nixery.image.request import ImageRequest
from nixery.pipeline.events import Build

# Of the log of a build, the last ones are kept: lines, and characters in them.
_LINES = 500
_CHARACTERS = 64 * 1024

# Seconds since the epoch, up to the year 9999. Others may have written the record of a report.
Time = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]


class State(StrEnum):
    """How far a build is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FOUND = "found"  # there was nothing to do
    FAILED = "failed"


class Stage(BaseModel):
    """A part of a build; times are in seconds since the epoch."""

    name: str
    started: Time
    ended: Time | None = None


class Line(BaseModel):
    """A line of the log of a builder.

    Attributes:
        number: of the change of the report that brought it.
    """

    number: int
    derivation: str
    text: str


class BuildReport(BaseModel):
    """A build as it stands. Sizes are in bytes, times in seconds since the epoch.

    Attributes:
        number: of changes so far.
        name: of the image, without the platform.
        revision: the state of the package source.
        request_id: of the client's request that it was begun for, as logs and traces have it.
        position: in the queue; 1 is next.
        packages: how many are wanted; ``None`` as long as nobody knows, as for all that follow.
        paths: store paths in the closure.
        size: of the closure.
        fetched: of ``to_fetch`` that binary caches send.
        building: the derivations whose builders run.
        built: how many builders have ended.
        layers: how many there will be.
        packed: layers that were packed, and their bytes.
        reused: layers that were there, and their bytes.
        log: its last lines.
        dropped: how many lines of it are not here.
        manifest: digest of the finished image.
        error: why there is none.
    """

    id: str
    name: str
    platform: str
    revision: str
    created: Time
    request_id: str | None = None
    number: int = 0
    state: State = State.WAITING
    ended: Time | None = None
    position: int | None = None
    stages: list[Stage] = []
    packages: int | None = None
    paths: int | None = None
    size: int | None = None
    fetched: int = 0
    to_fetch: int = 0
    building: list[str] = []
    built: int = 0
    layers: int | None = None
    packed: int = 0
    packed_bytes: int = 0
    reused: int = 0
    reused_bytes: int = 0
    log: Annotated[list[Line], Field(repr=False)] = []
    dropped: int = 0
    manifest: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, build: Build, now: float) -> BuildReport:
        """Begin the report of a build."""
        return cls(
            id=build.id,
            name=image_name(build.request),
            platform=str(build.request.platform),
            revision=build.pin.revision,
            request_id=build.request_id,
            created=now,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None

    def enter(self, stage: str, now: float) -> None:
        """One stage is over, and the next begins."""
        self.leave(now)
        self.stages.append(Stage(name=stage, started=now))

    def leave(self, now: float) -> None:
        """The stage is over."""
        if self.stages and self.stages[-1].ended is None:
            self.stages[-1].ended = now

    def write(self, derivation: str, text: str) -> None:
        """Add a line to the log; the oldest ones may have to go."""
        self.log.append(Line(number=self.number, derivation=derivation, text=text))
        characters = sum(len(line.text) for line in self.log)
        while len(self.log) > _LINES or characters > _CHARACTERS:
            characters -= len(self.log.pop(0).text)
            self.dropped += 1


def image_name(request: ImageRequest) -> str:
    """Return the shortest name of an image, without its platform; of one with nothing in it, that of its platform."""
    name = "/".join([*(["shell"] if request.shell else []), *request.requested])
    return name or request.platform.architecture.name
