"""What a push tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushStarted:
    """It is known what the target has to have.

    Attributes:
        size: of all blobs, in bytes.
    """

    target: str
    blobs: int
    size: int


@dataclass(frozen=True, slots=True)
class BytesPushed:
    """Bytes were sent; negative if they have to be sent again."""

    target: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobPushed:
    """The target has a blob.

    Attributes:
        how: ``uploaded``, ``mounted`` from another repository, or ``present`` before.
    """

    target: str
    digest: str
    size: int
    how: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """The target has the image."""

    target: str
    digest: str


PushEvent = PushStarted | BytesPushed | BlobPushed | Pushed
