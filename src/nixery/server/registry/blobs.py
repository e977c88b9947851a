"""``/v2/<name>/blobs/<digest>``."""

from __future__ import annotations

from nixery.errors import BlobUnknown
from nixery.image.request import validate_name
from nixery.oci.digest import Digest
from nixery.server.conditions import matches
from nixery.server.ranges import UnsatisfiableRange, parse_range
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import IMMUTABLE, FileResponse, NotModified, Response
from nixery.storage.store import BlobStore, StoredBlob


class Blobs:
    """Layers and configs."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def get(self, request: Request, name: str, digest: str) -> Response:
        """Answer GET and HEAD, ranges and conditions.

        Raises:
            InvalidName: the name is outside the grammar.
            InvalidDigest: so is the digest.
            BlobUnknown: there is no such blob; an empty file is a blob that was lost.
        """
        validate_name(name)
        blob = await self._find(name, Digest.parse(digest))
        etag = f'"{digest}"'
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": IMMUTABLE,
        }
        if matches(request, etag):
            return NotModified(headers)
        # A range of something else than what the client has the beginning of would not fit (RFC 9110, 13.1.5).
        wanted = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
        try:
            part = parse_range(wanted, blob.size)
        except UnsatisfiableRange:
            message = f"the range {wanted} begins behind the end of the blob"
            return errors_body(
                416, "SIZE_INVALID", message, headers={"Content-Range": f"bytes */{blob.size}"}
            )
        return FileResponse(blob.path, blob.size, headers, part)

    async def _find(self, name: str, digest: Digest) -> StoredBlob:  # noqa: ARG002 -- see below
        # Images share layers, and a client mounts or asks for them under whichever name it knows. So any name leads to any
        # blob. Rules about who may read what belong here.
        blob = await self._blobs.find(digest)
        if blob is None or blob.size == 0:
            raise BlobUnknown(str(digest))
        return blob
