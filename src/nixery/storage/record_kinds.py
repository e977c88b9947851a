"""All kinds of records, and how much there may be of each.

Whatever is in a record can be made again, so there are bounds for what a client may have written: the size of a record, how many
there are of a kind, and how long one stays that is neither written nor renewed. The stores of records refuse larger ones and take
them for missing; ``nixery.upkeep.tidying`` deletes what is older or too many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nixery.errors import StorageError

_KIB = 1024
_MIB = 1024 * 1024
_DAY = 24 * 3600.0

# Hexadecimal digits, of which the first two are the directory that a record is in.
_KEY = re.compile(r"[0-9a-f]{2,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RecordKind:
    """The bounds of a kind of records.

    Attributes:
        largest: bytes of a record.
        most: how many records there are; the oldest ones are deleted.
        age: seconds since a record was written or renewed, after which it is deleted.
        leads_to_blobs: whether it is of use only as long as blobs are there; those that are not are the first to go when the file
            system runs out of inodes.
    """

    largest: int
    most: int
    age: float
    leads_to_blobs: bool = False


# A tag or a pin that is in use is renewed within a day; an image's last use is in its record of the kind ``uses``, which goes with the
# image: the collector, and nothing else, may decide that.
KINDS: Mapping[str, RecordKind] = {
    "layers": RecordKind(4 * _KIB, 500_000, 365 * _DAY, leads_to_blobs=True),
    "images": RecordKind(4 * _KIB, 250_000, 365 * _DAY, leads_to_blobs=True),
    "evaluations": RecordKind(4 * _MIB, 50_000, 30 * _DAY),
    "builds": RecordKind(1 * _MIB, 1000, 30 * _DAY),
    "packages": RecordKind(64 * _MIB, 10, 90 * _DAY),
    "batches": RecordKind(16 * _MIB, 1000, 90 * _DAY),
    "batch-closures": RecordKind(64 * _MIB, 1000, 90 * _DAY),
    "pins": RecordKind(16 * _KIB, 50_000, 90 * _DAY),
    "tags": RecordKind(4 * _KIB, 50_000, 90 * _DAY),
    "referrers": RecordKind(64 * _KIB, 50_000, 365 * _DAY, leads_to_blobs=True),
    "uses": RecordKind(4 * _KIB, 250_000, 365 * _DAY, leads_to_blobs=True),
    # A collector that lives renews its record every few seconds; the next one deletes those of dead ones.
    "collections": RecordKind(1 * _MIB, 100, _DAY, leads_to_blobs=True),
}


def is_key(text: str) -> bool:
    """Whether a record can have this key."""
    return _KEY.fullmatch(text) is not None


def record_name(kind: str, key: str) -> str:
    """Return where a record is, below the root of a storage: ``records/<kind>/<first 2 characters>/<key>``.

    Raises:
        StorageError: there is no such kind, or no record can have that key.
    """
    if kind not in KINDS or not is_key(key):
        raise StorageError(f"{kind}/{key[:80]!r} is no name of a record; see nixery.storage.record_kinds")
    return f"records/{kind}/{key[:2]}/{key}"


def require_size(kind: str, content: bytes) -> None:
    """Check that a record may be as large as it is.

    Raises:
        StorageError: it may not.
    """
    largest = KINDS[kind].largest if kind in KINDS else 0
    if len(content) > largest:
        raise StorageError(
            f"a record of the kind {kind} would have {len(content)} bytes, and {largest} is the limit"
        )
