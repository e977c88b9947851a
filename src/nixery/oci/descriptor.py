"""Media types and descriptors (image specification, descriptor.md and media-types.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nixery.oci.digest import Digest


class MediaType(StrEnum):
    """The media types this registry produces. Families are never mixed within one manifest."""

    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points to content: what it is, its digest, and its size in bytes."""

    media_type: MediaType
    digest: Digest
    size: int

    def as_json(self) -> dict[str, Any]:
        """The descriptor's JSON object."""
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
