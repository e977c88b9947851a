"""``/v2/<name>/blobs/<digest>``."""

from __future__ import annotations

from nixery.errors import BlobUnknown
from nixery.image.request import validate_name
from nixery.oci.digest import Digest
from nixery.server.responses import FileResponse
from nixery.storage.store import BlobStore


class Blobs:
    """Layers and configs. Images share them, so any name leads to any blob."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def get(self, name: str, digest: str) -> FileResponse:
        """Answer GET and HEAD.

        Raises:
            InvalidName: the name is outside the grammar.
            InvalidDigest: so is the digest.
            BlobUnknown: there is no such blob; an empty file is a blob that was lost.
        """
        validate_name(name)
        blob = await self._blobs.find(Digest.parse(digest))
        if blob is None or blob.size == 0:
            raise BlobUnknown(digest)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Cache-Control": "public, max-age=31536000, immutable",
        }
        return FileResponse(blob.path, blob.size, headers)
