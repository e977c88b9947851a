"""What a storage says of what it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nixery.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is there.

    Attributes:
        digest: what it is stored under.
        size: in bytes, as found just now.
    """

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class StoredFile(StoredBlob):
    """A blob that is on this machine.

    Attributes:
        path: the file that holds it; never written to again.
    """

    path: Path


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob as a listing tells of it.

    Attributes:
        digest: what it is stored under.
        size: in bytes, as the storage has it; whether it is the right one, ``find`` knows.
        modified: when it was stored, in seconds since the epoch by the storage's clock.
    """

    digest: Digest
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """A record as a listing tells of it.

    Attributes:
        key: within its kind.
        modified: when it was written or renewed, in seconds since the epoch by the storage's clock.
    """

    key: str
    modified: float
