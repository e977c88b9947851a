from __future__ import annotations

from pathlib import Path

import pytest

from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def driver(tmp_path: Path, temporary: Path) -> FilesystemDriver:
    made = FilesystemDriver(tmp_path, temporary)
    made.make_directories()
    return made


@pytest.fixture
def blobs(driver: FilesystemDriver) -> BlobStore:
    return BlobStore(driver)


@pytest.fixture
def records(driver: FilesystemDriver) -> RecordStore:
    return RecordStore(driver)
