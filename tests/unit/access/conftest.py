"""Fixtures of the tests of access."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore


@pytest.fixture
def records(tmp_path: Path) -> RecordStore:
    """Records of an empty storage."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return RecordStore(FilesystemDriver(tmp_path, temporary))
