"""Records: small documents by kind and key, replaced as a whole, that the server can recreate; and API tokens.

::

    records/<kind>/<first 2 characters of the key>/<key>

A key of more than 200 characters is cut into directories, since a file name has at most 255 bytes: ``<200
characters>+/<rest>``. That keeps the order of keys.

``KINDS`` lists all kinds. Clients may cause any number of records, so each kind has bounds: the size of a
record, the number of records, and the age of one that is neither written nor renewed. The store refuses
larger records and treats them as missing; ``nixery.gc.records`` deletes records that are too old or too many.

Other programs may have written to the storage, and later versions may change a schema. So readers validate a
record (``decode``), and treat a torn or foreign one as missing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, TypeVar

import zstandard
from pydantic import FailFast

from nixery.errors import InvalidDigest, StorageError
from nixery.storage.driver import Driver

_KIB = 1024
_MIB = 1024 * 1024
_DAY = 24 * 3600.0

# Hexadecimal digits, mostly of a SHA-256.
_KEY = re.compile(r"[0-9a-f]{2,128}", re.ASCII)

# base32hex of a name and a tag, which have 384 characters at most.
_ORDERED_KEY = re.compile(r"[0-9a-v]{2,640}", re.ASCII)

# Characters of a key in one file name.
_PART = 200

# Characters of a key that name its directory.
_FAN = 2

Content = TypeVar("Content")
Element = TypeVar("Element")

# A list and a mapping in a schema that are read up to their first wrong element. Otherwise pydantic makes an error of a
# kilobyte for each, and no other thread runs meanwhile: for seconds, with a planted record of a hundred thousand.
CheckedList = Annotated[list[Element], FailFast()]
CheckedDict = Annotated[dict[str, Element], FailFast()]


@dataclass(frozen=True, slots=True)
class RecordKind:
    """The bounds of a kind of records.

    Attributes:
        largest: bytes of a record.
        most: number of records; beyond it, the oldest ones are deleted.
        age: seconds since a record was last written or renewed, after which it is deleted.
        commas: in a record that can be read; ``None`` for no limit. They bound the values in JSON: pydantic takes a
            kilobyte for each wrong one, and a foreign record may have a million of two bytes.
        leads_to_blobs: whether it is useless without its blobs. When the file system runs out of inodes, the
            collector first deletes records for which this is false.
        is_ordered: whether its keys are texts in their order (``ordered_key``), rather than hexadecimal
            digits.
    """

    largest: int
    most: int
    age: float
    commas: int | None = None
    leads_to_blobs: bool = False
    is_ordered: bool = False


# The kinds, which are parts of names in the storage.
LAYERS = "layers"
IMAGES = "images"
EVALUATIONS = "evaluations"
IMAGE_CLOSURES = "image-closures"
BUILDS = "builds"
BUILD_PROGRESS = "build-progress"
PACKAGES = "packages"
PACKAGE_DETAILS = "package-details"
BATCHES = "batches"
BATCH_CLOSURES = "batch-closures"
PINS = "pins"
TAGS_IN_ORDER = "tags-in-order"
REFERRERS = "referrers"
IMAGE_NAMES = "image-names"
SIGNING_KEYS = "signing-keys"
CACHE_KEYS = "cache-keys"
USES = "uses"
COLLECTIONS = "collections"
API_TOKENS = "api-tokens"
API_TOKEN_USES = "api-token-uses"  # noqa: S105 -- a kind
QUOTA_USAGE = "quota-usage"
SUBSTITUTED_CLOSURES = "substituted-closures"
NAR_LISTINGS = "nar-listings"
# Of storages of version 1 (nixery.storage.catalogue).
TAGS = "tags"

# The server renews a tag or a pin in use within a day. The record of the kind ``uses`` has an image's last
# use and lives as long as the image: only the collector may delete it.
KINDS: Mapping[str, RecordKind] = {
    LAYERS: RecordKind(4 * _KIB, 500_000, 365 * _DAY, leads_to_blobs=True),
    IMAGES: RecordKind(4 * _KIB, 250_000, 365 * _DAY, leads_to_blobs=True),
    IMAGE_CLOSURES: RecordKind(4 * _MIB, 50_000, 365 * _DAY),
    EVALUATIONS: RecordKind(4 * _MIB, 50_000, 30 * _DAY, commas=50_000),
    BUILDS: RecordKind(1 * _MIB, 1000, 30 * _DAY, commas=100_000),
    # Of waiting and running builds, for the other servers; a killed server leaves its own.
    BUILD_PROGRESS: RecordKind(512 * _KIB, 1000, _DAY, commas=100_000),
    PACKAGES: RecordKind(64 * _MIB, 10, 90 * _DAY),
    PACKAGE_DETAILS: RecordKind(16 * _MIB, 5000, 90 * _DAY),
    BATCHES: RecordKind(16 * _MIB, 1000, 90 * _DAY, commas=100_000),
    BATCH_CLOSURES: RecordKind(64 * _MIB, 1000, 90 * _DAY, commas=250_000),
    PINS: RecordKind(16 * _KIB, 50_000, 90 * _DAY),
    TAGS_IN_ORDER: RecordKind(4 * _KIB, 50_000, 90 * _DAY, is_ordered=True),
    TAGS: RecordKind(4 * _KIB, 50_000, 90 * _DAY),
    REFERRERS: RecordKind(64 * _KIB, 50_000, 365 * _DAY, leads_to_blobs=True),
    # A name, a digest and up to 32 tags of 128 characters.
    IMAGE_NAMES: RecordKind(8 * _KIB, 250_000, 365 * _DAY, commas=64, leads_to_blobs=True),
    # Of the token service. New servers would make new ones, and clients get new tokens.
    SIGNING_KEYS: RecordKind(4 * _KIB, 16, 3650 * _DAY, leads_to_blobs=True),
    # Of the binary cache. Clients would have to trust a new one, so that age and number delete none in practice.
    CACHE_KEYS: RecordKind(1 * _KIB, 16, 3650 * _DAY, leads_to_blobs=True),
    USES: RecordKind(4 * _KIB, 250_000, 365 * _DAY, leads_to_blobs=True),
    # A running collector renews its record every few seconds; the next collector deletes those of dead ones.
    COLLECTIONS: RecordKind(1 * _MIB, 100, _DAY, leads_to_blobs=True),
    # Cannot be made again: exempt from the bounds of number and age, which `access.api_tokens` enforces.
    API_TOKENS: RecordKind(32 * _KIB, 5000, 3650 * _DAY, commas=2000, leads_to_blobs=True),
    # What binary caches have said of the closure of a store path; by the hash of the path.
    SUBSTITUTED_CLOSURES: RecordKind(4 * _MIB, 50_000, 365 * _DAY),
    # The names in a store path; by the hash of its NAR.
    NAR_LISTINGS: RecordKind(8 * _MIB, 250_000, 365 * _DAY),
    # By their times, the last uses of tokens.
    API_TOKEN_USES: RecordKind(64, 10_000, 3650 * _DAY, leads_to_blobs=True),
    # Of each server that had something built within a day.
    QUOTA_USAGE: RecordKind(256 * _KIB, 1000, _DAY, commas=10_000, leads_to_blobs=True),
}


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """A record in a listing.

    Attributes:
        key: within its kind.
        modified: when it was written or renewed, in seconds since the epoch by the storage's clock.
    """

    key: str
    modified: float


class RecordStore:
    """The records of a storage."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def get(self, kind: str, key: str) -> bytes | None:
        """Return a record; ``None`` if it is missing, or exceeds the bounds of its kind.

        Raises:
            StorageError: the storage cannot be read.
        """
        name, bounds = record_name(kind, key), KINDS[kind]
        content = await self._driver.read(name, bounds.largest)
        if content is None or bounds.commas is None or content.count(b",") <= bounds.commas:
            return content
        return None

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """Write a record.

        Raises:
            StorageError: it cannot be written, or is larger than its kind allows.
        """
        await self._write(kind, key, content, renew=False)

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """Make an existing record count as written now; write it if it is missing.

        Raises:
            StorageError: it cannot be written.
        """
        await self._write(kind, key, content, renew=True)

    async def _write(self, kind: str, key: str, content: bytes, *, renew: bool) -> None:
        name, largest = record_name(kind, key), KINDS[kind].largest
        if len(content) > largest:
            raise StorageError(
                f"cannot write a record of the kind {kind}: it has {len(content)} bytes, the limit is {largest}"
            )
        await self._driver.write(name, content, renew=renew)

    async def scan(self, kind: str, prefix: str = "", after: str = "") -> AsyncGenerator[ListedRecord, None]:
        """List the records of a kind in the order of their keys, in memory that does not grow with their number.

        A listing that the caller ends early costs no more than what it read.

        Args:
            kind: of the records.
            prefix: the keys begin with it.
            after: any text; only larger keys are listed.

        Raises:
            StorageError: the storage cannot be listed.
        """
        directory = f"records/{kind}/{prefix[:_FAN]}" if len(prefix) >= _FAN else f"records/{kind}"
        begin = f"records/{kind}/{after[:_FAN]}/{_in_parts(after)}" if after else ""
        async with aclosing(self._driver.list(directory, begin)) as entries:
            async for entry in entries:
                key = "".join(entry.name.split("/")[3:]).replace("+", "")
                # Ignores files that are not where their key belongs.
                is_ours = _is_key(kind, key) and entry.name == record_name(kind, key)
                # A server that ignores where a listing begins must not make the caller start over for ever.
                if is_ours and key.startswith(prefix) and key > after:
                    yield ListedRecord(key, entry.modified)

    async def delete(self, kind: str, key: str) -> None:
        """Delete a record; do nothing if it is missing.

        Raises:
            StorageError: it cannot be deleted.
        """
        await self._driver.delete(record_name(kind, key))


def record_name(kind: str, key: str) -> str:
    """Return the name of a record in the storage.

    Raises:
        StorageError: the kind is unknown, or the key is invalid.
    """
    if not _is_key(kind, key):
        raise StorageError(f"{kind}/{key[:80]!r} is not the name of a record; see nixery.storage.records")
    return f"records/{kind}/{key[:_FAN]}/{_in_parts(key)}"


def _is_key(kind: str, key: str) -> bool:
    known = KINDS.get(kind)
    return known is not None and (_ORDERED_KEY if known.is_ordered else _KEY).fullmatch(key) is not None


def _in_parts(key: str) -> str:
    return "+/".join(key[start : start + _PART] for start in range(0, len(key), _PART))


def ordered_key(text: bytes) -> str:
    """Encode a text as a key; keys have the order of their texts (base32hex, RFC 4648, without padding)."""
    return base64.b32hexencode(text).decode().rstrip("=").lower()


def text_of(key: str) -> bytes:
    """Decode the key of a text.

    Raises:
        ValueError: it is none.
    """
    text = base64.b32hexdecode(key.upper() + "=" * (-len(key) % 8))
    if ordered_key(text) != key:
        raise ValueError(f"{key[:80]!r} is not the key of a text")
    return text


def decompressed(content: bytes, limit: int) -> bytes:
    """Decompress a record (zstd).

    Raises:
        ValueError: it is torn, or has more bytes than the limit: a planted one may decompress to anything.
    """
    try:
        # The decompressor allocates what the frame claims.
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= limit:
            raise ValueError(f"{size} bytes after decompression; {limit} is the limit")
        return zstandard.decompress(content, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def decode(read: Callable[[bytes], Content], content: bytes | None) -> Content | None:
    """Read a record; ``None`` if it is missing, torn, or was written with another schema.

    Args:
        read: the schema: parses and validates a record, for example ``model_validate_json`` of a pydantic
            model.
        content: of the record.
    """
    if content is None:
        return None
    try:
        return read(content)
    except (ValueError, KeyError, TypeError, InvalidDigest):
        return None
