"""What comes out of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.image import Document


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image: the same config and layers under two manifests.

    Attributes:
        manifest: in OCI's media types.
        docker_manifest: in Docker's.
    """

    manifest: Document
    docker_manifest: Document
