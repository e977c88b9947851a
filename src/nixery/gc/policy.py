"""What may stay in a store, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.storage.store import ListedBlob


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Limits of a collection. Without any, it keeps every image that was ever used and is not broken.

    Attributes:
        max_age: seconds since the last use; ``None`` for no limit.
        max_size: bytes of all blobs; ``None`` for no limit.
        free: bytes to delete, instead of ``max_size``.
        free_files: files of blobs to delete, in addition to the other limits.
        max_documents: manifests and indexes that were used; ``None`` for no limit.
    """

    max_age: float | None = None
    max_size: int | None = None
    free: int | None = None
    free_files: int | None = None
    max_documents: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Remaining room; ``None`` for no limit.

    Attributes:
        size: bytes of all blobs.
        blobs: how many.
        documents: manifests and indexes.
    """

    size: int | None = None
    blobs: int | None = None
    documents: int | None = None

    def holds(self, size: int, blobs: int, documents: int) -> bool:
        """Whether an addition fits."""
        wanted = ((self.size, size), (self.blobs, blobs), (self.documents, documents))
        return all(limit is None or needed <= limit for limit, needed in wanted)


@dataclass(slots=True)
class GcResult:
    """Results of a collection.

    Attributes:
        deleted: number of blobs.
        deleted_bytes: their size.
        kept: number of blobs.
        kept_bytes: their size.
        records: number of deleted records.
        over: bytes over the limit that were used too recently to delete.
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
