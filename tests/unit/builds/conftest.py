"""A real storage in a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The directory, with one for temporary files."""
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.fixture
def records(storage: Path) -> RecordStore:
    return RecordStore(FilesystemDriver(storage, storage / "temporary"))


@pytest.fixture
def blobs(storage: Path) -> BlobStore:
    return BlobStore(FilesystemDriver(storage, storage / "temporary"))
