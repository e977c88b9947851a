"""What comes out of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.image import Document


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image for one platform: the same config and layers under two manifests.

    Attributes:
        manifest: in OCI's media types.
        docker_manifest: in Docker's; ``None`` if they cannot tell how the layers are compressed.
    """

    manifest: Document
    docker_manifest: Document | None

    @property
    def manifests(self) -> tuple[Document, ...]:
        """All there are, OCI's last."""
        return (self.docker_manifest, self.manifest) if self.docker_manifest else (self.manifest,)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A stored index of images for several platforms.

    Attributes:
        index: in OCI's media types.
        docker_index: in Docker's; ``None`` if an image has no manifest in them.
        first: the image for those who do not understand an index.
    """

    index: Document
    docker_index: Document | None
    first: Image

    @property
    def indexes(self) -> tuple[Document, ...]:
        """All there are, OCI's last."""
        return (self.docker_index, self.index) if self.docker_index else (self.index,)
