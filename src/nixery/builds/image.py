"""What comes out of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.digest import Digest
from nixery.oci.documents import Document, referenced_blobs


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

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Those of the manifests."""
        return tuple(manifest.descriptor.digest for manifest in self.manifests)

    @property
    def parts(self) -> tuple[tuple[Digest, int], ...]:
        """Digest and size of all blobs, the manifests among them."""
        documents = (document.descriptor for document in self.manifests)
        return (
            *referenced_blobs(self.manifest.content),
            *((descriptor.digest, descriptor.size) for descriptor in documents),
        )


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

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Those of the indexes."""
        return tuple(index.descriptor.digest for index in self.indexes)
