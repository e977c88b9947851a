"""Where blobs and records are kept, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, model_validator

from nixery.settings.quantities import DiskMark, seconds
from nixery.settings.values import NotEmpty, Size

# Which variable names the bucket, by backend.
BUCKETS = {"s3": "S3_BUCKET", "gcs": "GCS_BUCKET", "azure": "AZURE_CONTAINER_NAME"}

# Those that are not on a file system of this machine.
_ELSEWHERE = frozenset({*BUCKETS, "memory"})

_GIB = 1024**3
_WEEK = 7 * 24 * 3600

# Defaults, so that a storage does not fill its disk, or a trial the memory. A bucket has no default limit.
_HIGH = {"filesystem": "90%", "memory": "1GiB"}
_NO_MARK = "none"


def _of_this_backend(mark: DiskMark | None, others: ValidationInfo) -> DiskMark | None:
    backend = others.data.get("storage_backend")
    if mark is not None and mark.percent is not None and backend in _ELSEWHERE:
        raise ValueError(
            f"{backend} has no file system to take a percentage of; write a size, for example 500GiB"
        )
    return mark


def _below_high(low: DiskMark | None, others: ValidationInfo) -> DiskMark | None:
    high = others.data.get("storage_high")
    if low is not None and (high is None or not low.is_below(high)):
        raise ValueError("it has to be below NIXERY_STORAGE_HIGH, and in the same unit: percent or bytes")
    return low


def _mark(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value.strip().lower() == _NO_MARK else DiskMark.parse(value)


_Mark = BeforeValidator(_mark)


class StorageSettings(BaseModel):
    """Location of blobs and records, and their retention.

    The library for buckets reads the SDKs' own variables for credentials, regions and endpoints.

    Attributes:
        storage_backend: where blobs are stored.
        storage_path: directory of the file system backend; for others, of copies of repositories and of
            blobs.
        blob_delivery: whether to redirect clients to the bucket; ``None`` to do so if possible.
        s3_prefix: of all keys in a bucket of any kind.
        s3_public_endpoint: where clients reach the bucket, if it differs from ours.
        cache_size: bytes of blobs that are cached in ``storage_path`` when the server delivers them.
        storage_grace: seconds for which anything used or stored is kept, whatever the other settings say.
        storage_high: high watermark, above which images are deleted; ``None`` for no limit, the default for a
            bucket. A percentage needs a file
            system, and applies to its bytes and to its inodes.
        storage_low: low watermark, at which deletion stops; ``None`` for nine tenths of ``storage_high``.
        scrub_rate: MiB a second that are read in the background to find broken blobs; 0 for none, the default
            for a bucket.
    """

    storage_backend: Annotated[
        Literal["filesystem", "s3", "gcs", "azure", "memory"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")
    ]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    blob_delivery: Annotated[
        Literal["redirect", "proxy"] | None, NotEmpty, Field(alias="NIXERY_BLOB_DELIVERY")
    ] = None
    s3_bucket: Annotated[str | None, NotEmpty, Field(alias="S3_BUCKET")] = None
    s3_prefix: Annotated[str, Field(alias="S3_PREFIX")] = ""
    s3_public_endpoint: Annotated[str | None, NotEmpty, Field(alias="S3_PUBLIC_ENDPOINT")] = None
    gcs_bucket: Annotated[str | None, NotEmpty, Field(alias="GCS_BUCKET")] = None
    azure_container: Annotated[str | None, NotEmpty, Field(alias="AZURE_CONTAINER_NAME")] = None
    cache_size: Annotated[int, NotEmpty, Size, Field(alias="NIXERY_CACHE_SIZE", ge=0)] = 10 * _GIB
    storage_grace: Annotated[
        int, NotEmpty, BeforeValidator(seconds), Field(alias="NIXERY_STORAGE_GRACE", ge=1, le=_WEEK)
    ] = 7200
    storage_high: Annotated[
        DiskMark | None,
        NotEmpty,
        _Mark,
        AfterValidator(_of_this_backend),
        Field(alias="NIXERY_STORAGE_HIGH"),
    ] = None
    storage_low: Annotated[
        DiskMark | None, NotEmpty, _Mark, AfterValidator(_below_high), Field(alias="NIXERY_STORAGE_LOW")
    ] = None
    scrub_rate: Annotated[int, NotEmpty, Field(alias="NIXERY_SCRUB_RATE", ge=0, le=1 << 16)] = 1

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_backend(cls, given: Any) -> Any:  # noqa: ANN401 -- pydantic's
        if not isinstance(given, Mapping):
            return given
        backend = given.get("NIXERY_STORAGE_BACKEND")
        defaults: dict[str, object] = {}
        # With a bucket nothing on this machine has to last.
        if backend in _ELSEWHERE:
            cache = Path(given.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            # A bucket compares what it has with checksums of its own, and reading it all may cost money.
            defaults = {"STORAGE_PATH": str(cache / "nixery"), "NIXERY_SCRUB_RATE": 0}
        if backend in _HIGH:
            defaults["NIXERY_STORAGE_HIGH"] = _HIGH[backend]
        return {**defaults, **given}


def storage_problems(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each setting that the chosen backend lacks."""
    backend = environment.get("NIXERY_STORAGE_BACKEND", "")
    variable = BUCKETS.get(backend)
    problems = []
    if variable is not None and variable not in environment:
        problems.append(
            f"{variable} is not set: the bucket where layers are kept (NIXERY_STORAGE_BACKEND={backend})"
        )
    if (
        backend == "azure"
        and not {"AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"} & environment.keys()
    ):
        problems.append("AZURE_STORAGE_ACCOUNT_NAME is not set: the account that has AZURE_CONTAINER_NAME")
    return problems
