"""All kinds of records, with the bounds of each.

The server can recreate every record, so the bounds apply to all that clients may cause: the size of a record,
the number of records of a kind, and how long a record stays that is neither written nor renewed. The record
stores refuse larger records and treat them as missing; ``nixery.gc.marking`` deletes those that are too
old or too many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nixery.errors import StorageError

_KIB = 1024
_MIB = 1024 * 1024
_DAY = 24 * 3600.0

# Hexadecimal digits; the first two name the directory of a record.
_KEY = re.compile(r"[0-9a-f]{2,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RecordKind:
    """The bounds of a kind of records.

    Attributes:
        largest: bytes of a record.
        most: number of records; beyond it, the oldest ones are deleted.
        age: seconds since a record was last written or renewed, after which it is deleted.
        leads_to_blobs: whether it is useless without its blobs. When the file system runs out of inodes, the
            tidy-up first deletes records for which this is false.
    """

    largest: int
    most: int
    age: float
    leads_to_blobs: bool = False


# The server renews a tag or a pin in use within a day. The record of the kind ``uses`` has an image's last
# use and lives as long as the image: only the collector may delete it.
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
    # A running collector renews its record every few seconds; the next collector deletes those of dead ones.
    "collections": RecordKind(1 * _MIB, 100, _DAY, leads_to_blobs=True),
}


def is_key(text: str) -> bool:
    """Whether a record can have this key."""
    return _KEY.fullmatch(text) is not None


def record_name(kind: str, key: str) -> str:
    """Return where a record is, below the root of a storage: ``records/<kind>/<first 2 characters>/<key>``.

    Raises:
        StorageError: the kind is unknown, or the key is invalid.
    """
    if kind not in KINDS or not is_key(key):
        raise StorageError(f"{kind}/{key[:80]!r} is no name of a record; see nixery.storage.record_kinds")
    return f"records/{kind}/{key[:2]}/{key}"


def require_size(kind: str, content: bytes) -> None:
    """Check the size of a record.

    Raises:
        StorageError: it is too large.
    """
    largest = KINDS[kind].largest if kind in KINDS else 0
    if len(content) > largest:
        raise StorageError(
            f"a record of the kind {kind} would have {len(content)} bytes, and {largest} is the limit"
        )
