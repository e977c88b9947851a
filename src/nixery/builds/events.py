"""What a build tells while it goes on. Logs, pages, metrics and traces are observers of this one stream.

Several observers of one stream of events.

Build events as log lines.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from nixery.errors import NixeryError, PackageSetChanged, RequestError, TooBusy
from nixery.image.name import ImageRequest
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.nix.packages import Package
from nixery.oci.digest import Digest
from nixery.oci.documents import Layer
from nixery.packing.root_filesystem import NameClash
from nixery.sources.source import Pin


@dataclass(frozen=True, slots=True)
class Build:
    """One attempt to provide an image.

    Attributes:
        id: 20 hexadecimal digits, in the order in which builds begin.
        request: what is to be in the image.
        pin: where that is from.
        request_id: identity of the client's request that it was begun for, if it was for one.
    """

    id: str
    request: ImageRequest
    pin: Pin
    request_id: str | None = None

    @classmethod
    def of(cls, request: ImageRequest, pin: Pin, request_id: str | None = None) -> Build:
        """Begin another one."""
        return cls(f"{time.time_ns() // 1_000:014x}{secrets.token_hex(3)}", request, pin, request_id)


@dataclass(frozen=True, slots=True)
class Requested:
    """Somebody wants the image to be there, and does not wait for it."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Others are built first. Told again when fewer of them are left.

    Attributes:
        position: in the queue; 1 is next.
    """

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The image was not built before, and is built now."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The packages are known."""

    packages: Sequence[Package]


@dataclass(frozen=True, slots=True)
class Realised:
    """The packages are in the Nix store.

    Attributes:
        paths: number of store paths in the closure.
        size: of them all, in bytes (NAR size).
    """

    paths: int
    size: int


@dataclass(frozen=True, slots=True)
class Grouped:
    """It is known what is in which layer, and what is at ``/``.

    Attributes:
        layers: how many there will be.
    """

    layers: int


@dataclass(frozen=True, slots=True)
class LayerPacked:
    """A layer is in the store; it was not before."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class LayerReused:
    """A layer was in the store already."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class NamesClashed:
    """Packages have files of the same name; some are not to be seen at ``/``."""

    clashes: Sequence[NameClash]


@dataclass(frozen=True, slots=True)
class LayersComplete:
    """All layers are in the store."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The image is complete and can be pulled."""

    manifest: Digest
    layers: int


@dataclass(frozen=True, slots=True)
class Reused:
    """The image was built before, by this server or another one on the same store."""

    manifest: Digest


@dataclass(frozen=True, slots=True)
class Joined:
    """Another request for the same image came while it was looked for or built, and waits for it as well.

    Told in the context of the one that came later.

    Attributes:
        first: the identity of the request that the build was begun for.
    """

    first: str


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no image."""

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


class BuildObserver(Protocol):
    """Watches builds. Must not raise and must not block: it is called on the event loop."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """Take note of an event in a build."""
        ...


class Observers:
    """The ``BuildObserver`` that tells others, in their order."""

    def __init__(self, *observers: BuildObserver) -> None:
        self._observers = observers

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``BuildObserver.observe``."""
        for observer in self._observers:
            observer.observe(build, event)


_log = structlog.get_logger("nixery.build")


# Clashes of an image that are logged one by one.
_CLASHES = 20


class LoggingObserver:
    """The ``BuildObserver`` that writes logs; a build that goes well is two lines at level info."""

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901, PLR0912 -- a case each
        """See ``BuildObserver.observe``."""
        request = build.request
        log = _log.bind(image="/".join(request.requested) or "(base)", platform=str(request.platform))
        match event:
            case Requested() | Started() | LayersComplete():
                pass  # what comes next tells more
            case Queued(position):
                log.debug("queued", position=position)
            case Grouped(layers):
                log.debug("grouped", layers=layers)
            case Evaluated(packages):
                log.info("building", packages=len(packages))
            case Realised(paths, size):
                log.debug("realised", paths=paths, bytes=size)
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
            case Failed(error=(RequestError() | TooBusy()) as error):
                log.info("not built", reason=str(error))
            case Failed(error=PackageSetChanged()):
                # The request restarts with the current state; if that fails, too, its answer says so.
                log.info("package set changed", reason="a file was written since it was looked at")
            case Failed(error):
                log.error("build failed", reason=str(error))
