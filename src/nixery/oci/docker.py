"""The same image in Docker's own media types, for clients that know no others (Docker Registry, manifest schema 2).

Families are never mixed: containers/image refuses a manifest of one with layers of the other. And there is no media type of
Docker's for zstd: what some tools have written in its place, containers/image refuses as well (its pull request 2906).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nixery.oci.descriptor import MediaType
from nixery.oci.image import Document, Layer


def docker_manifest(config: Document, layers: Sequence[Layer]) -> Document | None:
    """Make a schema 2 manifest. Config and layers are the bytes of the OCI image, under Docker's media types.

    Returns:
        ``None`` if a layer is compressed in a way that Docker has no media type for.
    """
    if any(layer.descriptor.media_type != MediaType.OCI_LAYER_GZIP for layer in layers):
        return None
    config_descriptor = replace(config.descriptor, media_type=MediaType.DOCKER_CONFIG)
    layer_descriptors = [replace(layer.descriptor, media_type=MediaType.DOCKER_LAYER) for layer in layers]
    return Document.of(
        MediaType.DOCKER_MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MediaType.DOCKER_MANIFEST,
            "config": config_descriptor.as_json(),
            "layers": [descriptor.as_json() for descriptor in layer_descriptors],
        },
    )
