"""What a build tells while it goes on. Logs, pages, metrics and traces are observers of this one stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.nix.builder import Package
from nixery.nix.progress import Building, Fetching, LogLines
from nixery.oci.digest import Digest
from nixery.oci.image import Layer
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
