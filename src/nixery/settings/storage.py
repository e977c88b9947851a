"""Where blobs and records are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from nixery.settings.values import NotEmpty


class StorageSettings(BaseModel):
    """Where blobs and records are kept.

    Attributes:
        storage_backend: where blobs are kept.
        storage_path: directory for the file system backend.
    """

    storage_backend: Annotated[Literal["filesystem"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
