"""What may stay in a store, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.storage.store import ListedBlob


@dataclass(frozen=True, slots=True)
class Limits:
    """What may stay. Without any limit, everything that was ever used and is not broken.

    Attributes:
        max_age: seconds since the last use; ``None`` for no limit.
        max_size: bytes of all blobs; ``None`` for no limit.
        free: bytes to be deleted, instead of ``max_size``.
        free_files: files to be deleted, of blobs; besides the others.
        max_documents: manifests and indexes that were used; ``None`` for no limit.
    """

    max_age: float | None = None
    max_size: int | None = None
    free: int | None = None
    free_files: int | None = None
    max_documents: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is room for; ``None`` for any number.

    Attributes:
        size: bytes of all blobs.
        blobs: how many.
        documents: manifests and indexes.
    """

    size: int | None = None
    blobs: int | None = None
    documents: int | None = None

    def holds(self, size: int, blobs: int, documents: int) -> bool:
        """Whether so much fits."""
        wanted = ((self.size, size), (self.blobs, blobs), (self.documents, documents))
        return all(limit is None or needed <= limit for limit, needed in wanted)


@dataclass(slots=True)
class Collected:
    """What a collection did.

    Attributes:
        deleted: blobs.
        deleted_bytes: of them.
        kept: blobs.
        kept_bytes: of them.
        records: that were deleted.
        over: bytes that were to go and were used too recently.
        over_blobs: blobs, likewise.
    """

    deleted: int = 0
    deleted_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    records: int = 0
    over: int = 0
    over_blobs: int = 0

    def keep(self, blob: ListedBlob) -> None:
        """Count a blob that stays."""
        self.kept += 1
        self.kept_bytes += blob.size

    def delete(self, blob: ListedBlob) -> None:
        """Count a blob that goes."""
        self.deleted += 1
        self.deleted_bytes += blob.size
