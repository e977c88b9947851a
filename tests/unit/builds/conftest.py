"""A real storage in a directory of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The directory, with one for temporary files."""
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.fixture
def records(storage: Path) -> FilesystemRecordStore:
    return FilesystemRecordStore(storage, storage / "temporary")


@pytest.fixture
def blobs(storage: Path) -> FilesystemBlobStore:
    return FilesystemBlobStore(storage, storage / "temporary")
