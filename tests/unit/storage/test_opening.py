from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import get_args

import pytest

from nixery.errors import StorageError
from nixery.settings import StorageSettings
from nixery.storage.driver import StoredObject
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.opening import open_storage, try_out
from nixery.storage.options import Backend, StorageOptions
from tests.support.dictionary_driver import DictionaryDriver


@pytest.mark.parametrize("backend", get_args(Backend))
def test_the_settings_have_every_backend(backend: Backend, tmp_path: Path) -> None:
    given = {
        "NIXERY_STORAGE_BACKEND": backend,
        "STORAGE_PATH": str(tmp_path),
        "NIXERY_BLOB_DELIVERY": "proxy",
    }
    given |= {name: name for name in ("S3_BUCKET", "GCS_BUCKET", "AZURE_CONTAINER_NAME")}
    buckets = {"s3": "S3_BUCKET", "gcs": "GCS_BUCKET", "azure": "AZURE_CONTAINER_NAME"}
    options = StorageSettings.model_validate(given).storage_options
    assert options == StorageOptions(
        backend, tmp_path, bucket=buckets.get(backend, ""), redirects=False, cache_size=10 << 30
    )


def test_a_backend_without_a_driver_is_not_another_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="sftp"):
        open_storage(StorageOptions("sftp", tmp_path), tmp_path, {})  # type: ignore[arg-type]


class Denied(DictionaryDriver):
    """A driver that lacks a permission."""

    lacks = ""

    async def probe(self) -> None:
        self._require("write")

    async def read(self, name: str, largest: int) -> bytes | None:
        self._require("read")
        return await super().read(name, largest)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        self._require("list")
        async for entry in super().list(directory, after):
            yield entry

    async def url(self, name: str) -> str | None:  # noqa: ARG002 -- always fails the same way
        self._require("url")
        return None

    def _require(self, permission: str) -> None:
        if permission == self.lacks:
            raise StorageError(f"no permission to {permission}")


@pytest.mark.parametrize("permission", ["write", "list", "read", "url"])
def test_the_start_finds_a_missing_permission_of_any_driver(permission: str, tmp_path: Path) -> None:
    driver = Denied(str(tmp_path))
    driver.lacks = permission
    with pytest.raises(StorageError, match=f"no permission to {permission}"):
        try_out(driver, redirects=True)
    if permission == "url":
        try_out(driver, redirects=False)


async def test_the_start_of_a_directory_writes_nothing_but_the_version(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path / "storage", tmp_path / "temporary")
    try_out(driver, redirects=True)
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["version"]
