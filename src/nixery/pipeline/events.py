"""What a build tells while it goes on. Logs, and later pages and metrics, are observers of this one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.nix.builder import Package
from nixery.oci.digest import Digest
from nixery.oci.image import Layer
from nixery.packing.root_filesystem import NameClash


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
        first: the identity of the request that the build belongs to.
    """

    first: str


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no image."""

    error: NixeryError


BuildEvent = (
    Queued
    | Started
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

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """Take note of an event in the build for a request."""
        ...
