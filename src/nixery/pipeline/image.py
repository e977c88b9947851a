"""What comes out of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.image import Document


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image for one platform: the same config and layers under two manifests.

    Attributes:
        manifest: in OCI's media types.
        docker_manifest: in Docker's.
    """

    manifest: Document
    docker_manifest: Document


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A stored index of images for several platforms.

    Attributes:
        index: in OCI's media types.
        docker_index: in Docker's.
        first: the image for those who do not understand an index.
    """

    index: Document
    docker_index: Document
    first: Image
