"""``/v2/<name>/blobs/<digest>``: layers and configs."""

from __future__ import annotations

from nixery.errors import BlobUnknown
from nixery.image.name import validate_name
from nixery.oci.digest import Digest
from nixery.server.errors import errors_body
from nixery.server.http import (
    IMMUTABLE,
    BytesResponse,
    FileResponse,
    NotModified,
    Request,
    Response,
    StreamResponse,
    UnsatisfiableRange,
    matches,
    parse_range,
)
from nixery.server.registry.permissions import Permissions
from nixery.storage.blobs import BlobStore, SmallBlobs, StoredBlob, StoredFile
from nixery.storage.leases import Leases

# Bytes up to which a blob is answered from memory. The web server sends a larger one from its file.
_SMALL = 64 * 1024


class Blobs:
    """Answers with blobs.

    Without rules, any name gives access to any blob: images share layers, and clients mount them under any name that
    they know.

    Args:
        permissions: decides who may pull what.
        leases: renews the leases of images whose blobs are requested.
        redirect: whether to redirect clients to the bucket for large blobs.
    """

    def __init__(
        self,
        blobs: BlobStore,
        small: SmallBlobs,
        leases: Leases,
        permissions: Permissions,
        *,
        redirect: bool = False,
    ) -> None:
        self._permissions = permissions
        self._blobs = blobs
        self._small = small
        self._leases = leases
        self._redirect = redirect

    async def get(self, request: Request, name: str, digest: str) -> Response:
        """Answer GET and HEAD, ranges and conditions.

        Raises:
            InvalidName: the name is outside the grammar.
            InvalidDigest: so is the digest.
            BlobUnknown: there is no such blob; an empty file is a blob that was lost.
        """
        validate_name(name)
        parsed = Digest.parse(digest)
        await self._permissions.require_digest(request, name, parsed, BlobUnknown(digest))
        self._leases.renew_holding(parsed)
        blob = self._small.kept(parsed) or await self._find(parsed)
        size = len(blob) if isinstance(blob, bytes) else blob.size
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
        # Only GET has ranges (RFC 9110, 14.2). If If-Range names another blob, the client has the beginning
        # of that one, and needs all of this one (13.1.5).
        has_range = request.method == "GET" and request.headers.get("if-range", etag) == etag
        wanted = request.headers.get("range") if has_range else None
        try:
            part = parse_range(wanted, size)
        except UnsatisfiableRange:
            message = f"the range {wanted} begins after the end of the blob"
            return errors_body(416, "SIZE_INVALID", message, headers={"Content-Range": f"bytes */{size}"})
        status = 200
        if part is not None:
            status = 206
            headers["Content-Range"] = f"bytes {part.first}-{part.last}/{size}"
        if isinstance(blob, bytes):
            return BytesResponse(status, blob[part.first : part.last + 1] if part else blob, headers)
        if isinstance(blob, StoredFile):
            return FileResponse(status, blob.path, size, part, headers)
        # The URL is signed for GET alone, expires, and takes the client's own range.
        if self._redirect and request.method == "GET" and (url := await self._blobs.url(blob)) is not None:
            return BytesResponse(307, b"", {"Location": url, "Cache-Control": "no-store"})
        begin, end = (part.first, part.last) if part else (0, size - 1)
        return StreamResponse(status, end - begin + 1, lambda: self._blobs.stream(blob, begin, end), headers)

    async def _find(self, digest: Digest) -> bytes | StoredBlob:
        blob = await self._blobs.find_cached(digest)
        if blob is None or blob.size == 0:
            raise BlobUnknown(str(digest))
        if blob.size > _SMALL:
            return blob
        content = await self._small.read(blob)
        if content is None:
            raise BlobUnknown(str(digest))
        return content
