from __future__ import annotations

from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, MediaType, canonical_json
from nixery.storage.blobs import BlobStore
from nixery.storage.oci_layout import write_layout


async def test_an_index_without_images_is_an_error(blobs: BlobStore, tmp_path: Path) -> None:
    content = canonical_json({"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": []})
    root = Descriptor(MediaType.OCI_INDEX, Digest.of(content), len(content))
    await blobs.put(root.digest, content)
    place = tmp_path / "image"
    with pytest.raises(StorageError, match=r"a/b:latest.*lists no image"):
        await write_layout(blobs, root, "a/b", "latest", place, archive=False, umask=0o022)
    assert not place.exists()
