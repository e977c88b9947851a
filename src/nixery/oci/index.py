"""Indexes: one manifest for each platform (image specification, image-index.md; Docker calls it a manifest list)."""

from __future__ import annotations

from collections.abc import Sequence

from nixery.oci.descriptor import MediaType
from nixery.oci.image import Architecture, Document


def image_index(media_type: MediaType, manifests: Sequence[tuple[Architecture, Document]]) -> Document:
    """Make an index. Clients take the first manifest that fits, so the order counts.

    Args:
        media_type: OCI's or Docker's, as that of the manifests.
        manifests: what is pointed to, for Linux on each CPU.
    """
    return Document.of(
        media_type,
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                {**manifest.descriptor.as_json(), "platform": {**architecture.as_json(), "os": "linux"}}
                for architecture, manifest in manifests
            ],
        },
    )
