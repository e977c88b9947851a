"""The events of builds, and the stages that they divide a build into.

Logs, pages, metrics, traces and progress bars observe this one stream.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import structlog

from nixery.errors import BuildCancelled, NixeryError, PackageSetChanged, QuotaExceeded, RequestError, TooBusy
from nixery.image.name import ImageRequest
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.nix.packages import Package
from nixery.oci.digest import Digest
from nixery.oci.documents import Layer
from nixery.packing.root_filesystem import NameClash
from nixery.request_context import current_request
from nixery.sources.source import Pin

# Name clashes of an image that are logged one by one.
_CLASHES = 20

_log = structlog.get_logger("nixery.build")


@dataclass(frozen=True, slots=True)
class Build:
    """One attempt to provide an image.

    Attributes:
        id: 20 hexadecimal digits, in the order in which builds begin.
        request: the image.
        pin: the state of the package source.
        request_id: identity of the client's request that started it; ``None`` if no request did.
        tag: that this request named; ``None`` if no tag did.
        address: that sent this request.
    """

    id: str
    request: ImageRequest
    pin: Pin
    request_id: str | None = None
    tag: str | None = None
    address: str | None = None

    @classmethod
    def of(cls, request: ImageRequest, pin: Pin, tag: str | None = None) -> Build:
        """Create a build with a new id, for the current request."""
        context = current_request()
        request_id, address = (context.id, context.address) if context is not None else (None, None)
        identity = f"{time.time_ns() // 1_000:014x}{secrets.token_hex(3)}"
        return cls(identity, request, pin, request_id, tag, address)


@dataclass(frozen=True, slots=True)
class Requested:
    """A client requested the image without waiting for it."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The build waits for a slot. Sent again whenever its position changes.

    Attributes:
        position: in the queue; 1 is next.
        wait: estimated seconds until it has a slot; ``None`` while no build has ended.
    """

    position: int
    wait: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Started:
    """The storage has no such image, and the build has a slot."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The packages are known."""

    packages: Sequence[Package]


@dataclass(frozen=True, slots=True)
class Realised:
    """The packages are in the Nix store.

    Attributes:
        paths: number of store paths in the closure.
        size: bytes of all of them (NAR size).
    """

    paths: int
    size: int


@dataclass(frozen=True, slots=True)
class Grouped:
    """The store paths are grouped into layers.

    Attributes:
        layers: their number, including the layer with the root file system.
    """

    layers: int


@dataclass(frozen=True, slots=True)
class LayerPacked:
    """A layer was packed and stored."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class LayerReused:
    """A layer was already stored."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class NamesClashed:
    """Packages have files of the same name; only one of each is visible at ``/``."""

    clashes: Sequence[NameClash]


@dataclass(frozen=True, slots=True)
class LayersComplete:
    """All layers are stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The image is complete and can be pulled."""

    manifest: Digest
    layers: int


@dataclass(frozen=True, slots=True)
class Reused:
    """This server, or another one on the same storage, built the image before."""

    manifest: Digest


@dataclass(frozen=True, slots=True)
class Joined:
    """Another request joined the build. Sent in the context of the request that joined.

    Attributes:
        first: identity of the request that started the build.
    """

    first: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The build ended without an image."""

    error: NixeryError


BuildEvent = (
    Requested
    | Queued
    | Started
    | Fetching
    | Building
    | LogLines
    | Evaluated
    | Realised
    | Grouped
    | LayerPacked
    | LayerReused
    | NamesClashed
    | LayersComplete
    | Stored
    | Reused
    | Joined
    | Failed
)

# Receives the events of one build.
Observe = Callable[[BuildEvent], None]


class BuildObserver(Protocol):
    """Receives the events of all builds. Must neither raise nor block: it is called on the event loop."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """Receive an event of a build."""
        ...


class Stage(StrEnum):
    """A stage of a build; the values are labels of metrics and names of spans."""

    QUEUE = "queue"
    EVALUATE = "evaluate"
    REALISE = "realise"
    GROUP = "group"
    PACK = "pack"
    STORE = "store"


_BEGINS: Mapping[type[BuildEvent], Stage] = {
    Queued: Stage.QUEUE,
    Started: Stage.EVALUATE,
    Evaluated: Stage.REALISE,
    Realised: Stage.GROUP,
    Grouped: Stage.PACK,
    LayersComplete: Stage.STORE,
}


def stage_begun_by(event: BuildEvent) -> Stage | None:
    """Return the stage that begins with an event, and so ends the one before; ``None`` if the stage stays."""
    return _BEGINS.get(type(event))


def implied_packages(request: ImageRequest, packages: Sequence[Package]) -> int:
    """Return how many packages of an image its client did not name: those of ``shell``, and of each image."""
    return sum(package.requested_name not in request.requested for package in packages)


class LoggingObserver:
    """The ``BuildObserver`` that writes logs: for a successful build, two lines at level info."""

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901, PLR0912 -- a case each
        """See ``BuildObserver.observe``."""
        request = build.request
        log = _log.bind(image=request.name, platform=str(request.platform))
        match event:
            case Queued(position):
                log.debug("queued", position=position)
            case Evaluated(packages):
                log.info("building", packages=len(packages))
            case Realised(paths, size):
                log.debug("realised", paths=paths, bytes=size)
            case Grouped(layers):
                log.debug("grouped", layers=layers)
            case LayerPacked(layer):
                log.debug("packed", digest=str(layer.descriptor.digest), bytes=layer.descriptor.size)
            case LayerReused(layer):
                log.debug("reused", digest=str(layer.descriptor.digest))
            case NamesClashed(clashes):
                for clash in clashes[:_CLASHES]:
                    log.warning("names clash", name=clash.name, winner=clash.winner, loser=clash.loser)
                if len(clashes) > _CLASHES:
                    log.warning("more names clash", names=len(clashes) - _CLASHES)
            case Stored(manifest, layers):
                log.info("built", manifest=str(manifest), layers=layers)
            case Joined(first):
                log.info("joined", build_request_id=first)
            case Reused(manifest):
                log.info("found", manifest=str(manifest))
            case Failed(error=(RequestError() | TooBusy() | QuotaExceeded()) as error):
                log.info("not built", reason=str(error))
            case Failed(error=BuildCancelled() as error):
                log.info("build cancelled", build=build.id, reason=str(error))
            case Failed(error=PackageSetChanged()):
                # The request restarts with the current state; if that fails, too, its answer says so.
                log.info("package set changed", reason="a file has changed since the package set was read")
            case Failed(error):
                log.error("build failed", reason=str(error))
