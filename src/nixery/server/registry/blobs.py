"""``/v2/<name>/blobs/<digest>``."""

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
from nixery.storage.blobs import BlobStore, SmallBlobs, StoredBlob, StoredFile
from nixery.storage.leases import Leases

# Bytes up to which a blob is answered from memory. A larger one is better sent from its file.
_SMALL = 64 * 1024


class Blobs:
    """Layers and configs.

    Args:
        uses: told what is asked for, so that the rest of its image stays.
        redirect: whether clients are sent to where a blob is, if there is such a place. Small ones they get here.
    """

    def __init__(self, blobs: BlobStore, small: SmallBlobs, uses: Leases, *, redirect: bool = False) -> None:
        self._blobs = blobs
        self._small = small
        self._uses = uses
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
        self._uses.renew_holding(parsed)
        blob = await self._find(name, parsed)
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
        # Ranges are defined for GET only (RFC 9110, 14.2). With If-Range, the client has the beginning of
        # another blob (13.1.5).
        is_wanted = request.method == "GET" and request.headers.get("if-range", etag) == etag
        wanted = request.headers.get("range") if is_wanted else None
        try:
            part = parse_range(wanted, size)
        except UnsatisfiableRange:
            message = f"the range {wanted} begins behind the end of the blob"
            return errors_body(416, "SIZE_INVALID", message, headers={"Content-Range": f"bytes */{size}"})
        status = 200
        if part is not None:
            status = 206
            headers["Content-Range"] = f"bytes {part.first}-{part.last}/{size}"
        if isinstance(blob, bytes):
            return BytesResponse(status, blob[part.first : part.last + 1] if part else blob, headers)
        if isinstance(blob, StoredFile):
            return FileResponse(status, blob.path, size, part, headers)
        # A URL is signed for GET alone, and the client asks there for the same range. It must not be kept longer than it is good for.
        if self._redirect and request.method == "GET" and (url := await self._blobs.url(blob)) is not None:
            return BytesResponse(307, b"", {"Location": url, "Cache-Control": "no-store"})
        begin, end = (part.first, part.last) if part else (0, size - 1)
        return StreamResponse(status, end - begin + 1, lambda: self._blobs.stream(blob, begin, end), headers)

    async def _find(self, name: str, digest: Digest) -> bytes | StoredBlob:  # noqa: ARG002 -- see below
        # Images share layers, and a client mounts or asks for them under whichever name it knows. So any name leads to any
        # blob. Rules about who may read what belong here.
        kept = self._small.kept(digest)
        if kept is not None:
            return kept
        blob = await self._blobs.find_cached(digest)
        if blob is None or blob.size == 0:
            raise BlobUnknown(str(digest))
        if blob.size > _SMALL:
            return blob
        content = await self._small.read(blob)
        if content is None:
            raise BlobUnknown(str(digest))
        return content
