"""Where blobs and records are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from nixery.settings.values import NotEmpty

# Which variable names the bucket, by backend.
BUCKETS = {"s3": "S3_BUCKET", "gcs": "GCS_BUCKET", "azure": "AZURE_CONTAINER_NAME"}

_GIB = 1024**3


class StorageSettings(BaseModel):
    """Where blobs and records are kept.

    The SDKs' own variables for credentials, regions and endpoints are read by the library that talks to the bucket.

    Attributes:
        storage_backend: where blobs are kept.
        storage_path: directory of the file system backend; of the others, for copies of repositories and of blobs.
        delivery: whether clients are sent to the bucket; ``None`` for yes where they can be.
        s3_prefix: of all keys in the bucket, of whichever kind it is.
        s3_public_endpoint: where clients reach the bucket, if not where we do.
        cache_size: bytes of blobs that are copied to ``storage_path`` when they go through us.
    """

    storage_backend: Annotated[
        Literal["filesystem", "s3", "gcs", "azure", "memory"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")
    ]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    delivery: Annotated[Literal["redirect", "proxy"] | None, NotEmpty, Field(alias="NIXERY_DELIVERY")] = None
    s3_bucket: Annotated[str | None, NotEmpty, Field(alias="S3_BUCKET")] = None
    s3_prefix: Annotated[str, Field(alias="S3_PREFIX")] = ""
    s3_public_endpoint: Annotated[str | None, NotEmpty, Field(alias="S3_PUBLIC_ENDPOINT")] = None
    gcs_bucket: Annotated[str | None, NotEmpty, Field(alias="GCS_BUCKET")] = None
    azure_container: Annotated[str | None, NotEmpty, Field(alias="AZURE_CONTAINER_NAME")] = None
    cache_size: Annotated[int, NotEmpty, Field(alias="NIXERY_CACHE_SIZE", ge=0)] = 10 * _GIB

    @model_validator(mode="before")
    @classmethod
    def _with_local_path(cls, given: Any) -> Any:  # noqa: ANN401 -- pydantic's
        # With a bucket nothing on this machine has to last.
        if isinstance(given, Mapping) and given.get("NIXERY_STORAGE_BACKEND") in {*BUCKETS, "memory"}:
            cache = Path(given.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return {"STORAGE_PATH": str(cache / "nixery"), **given}
        return given


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
