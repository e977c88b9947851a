"""What layers an image has, and how they are packed."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from nixery.settings.values import NotEmpty, known_level


class LayerSettings(BaseModel):
    """What layers an image has, and how they are packed.

    Attributes:
        layer_budget: the most layers of an image, the last one with the root file system included; with 1, all store
            paths are one layer, and the root is another.
        popularity_url: http(s) or file URL, or a path, of a JSON object with reference counts.
        compression: of layers; zstd has no name in Docker's media types.
        compression_level: of that compression, from fast to small; ``None`` for its default.
        packing_workers: how many layers are packed at the same time.
    """

    # Docker's overlay2 stops at about 125 layers; what the default leaves is for those who build on top of our images.
    layer_budget: Annotated[int, NotEmpty, Field(alias="NIXERY_LAYER_BUDGET", ge=1, le=120)] = 94
    popularity_url: Annotated[str | None, NotEmpty, Field(alias="NIX_POPULARITY_URL")] = None
    compression: Annotated[Literal["gzip", "zstd"], NotEmpty, Field(alias="NIXERY_COMPRESSION")] = "gzip"
    compression_level: Annotated[
        int | None, NotEmpty, AfterValidator(known_level), Field(alias="NIXERY_COMPRESSION_LEVEL")
    ] = None
    packing_workers: Annotated[
        int,
        NotEmpty,
        Field(alias="NIXERY_PACKING_WORKERS", ge=1, le=256, default_factory=lambda: os.cpu_count() or 1),
    ]
