"""Where blobs and records are kept, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo

from nixery.settings.quantities import DiskMark, seconds
from nixery.settings.values import NotEmpty

_WEEK = 7 * 24 * 3600


def _below_high(low: DiskMark | None, others: ValidationInfo) -> DiskMark | None:
    high = others.data.get("storage_high")
    if low is not None and (high is None or not low.is_below(high)):
        raise ValueError("it has to be below NIXERY_STORAGE_HIGH, and in the same unit: percent or bytes")
    return low


_Mark = BeforeValidator(lambda value: DiskMark.parse(value) if isinstance(value, str) else value)


class StorageSettings(BaseModel):
    """Where blobs and records are kept, and for how long.

    Attributes:
        storage_backend: where blobs are kept.
        storage_path: directory for the file system backend.
        storage_grace: seconds for which nothing that was used or stored is deleted, whatever else is wanted.
        storage_high: above this, images are deleted; ``None`` for never.
        storage_low: until this is reached; ``None`` for nine tenths of ``storage_high``.
        scrub_rate: MiB a second that are read in the background to find broken blobs; 0 for none.
    """

    storage_backend: Annotated[Literal["filesystem"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    storage_grace: Annotated[
        int, NotEmpty, BeforeValidator(seconds), Field(alias="NIXERY_STORAGE_GRACE", ge=1, le=_WEEK)
    ] = 3600
    storage_high: Annotated[DiskMark | None, NotEmpty, _Mark, Field(alias="NIXERY_STORAGE_HIGH")] = None
    storage_low: Annotated[
        DiskMark | None, NotEmpty, _Mark, AfterValidator(_below_high), Field(alias="NIXERY_STORAGE_LOW")
    ] = None
    scrub_rate: Annotated[int, NotEmpty, Field(alias="NIXERY_SCRUB_RATE", ge=0, le=1 << 16)] = 1
