"""Blobs: from memory, from files and from buckets; ranges and conditions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest

from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.server.http import (
    ByteRange,
    BytesResponse,
    FileResponse,
    NotModified,
    Request,
    Response,
    StreamResponse,
)
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.permissions import Permissions
from nixery.storage.blobs import SmallBlobs, StoredBlob
from tests.unit.server.conftest import LARGE, StoredImage

SMALL = b"a small layer"
DIGEST, LARGE_DIGEST = Digest.of(SMALL), Digest.of(LARGE)


async def ask(stored: StoredImage, digest: object, method: str = "GET", **headers: str) -> Response:
    registry, _ = stored.registry()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await registry.answer(Request(method, f"/v2/any/name/blobs/{digest}", named))


async def test_a_small_blob_is_answered_from_memory(stored: StoredImage) -> None:
    answer = await ask(stored, DIGEST)
    assert answer == BytesResponse(
        200,
        SMALL,
        {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": str(DIGEST),
            "ETag": f'"{DIGEST}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "public, max-age=31536000, immutable",
        },
    )


async def test_the_web_server_sends_a_large_blob_from_its_file(stored: StoredImage) -> None:
    answer = await ask(stored, LARGE_DIGEST)
    assert isinstance(answer, FileResponse)
    assert (answer.status, answer.size, answer.part) == (200, len(LARGE), None)
    assert answer.path.read_bytes() == LARGE


async def test_a_range_is_partial_content(stored: StoredImage) -> None:
    small = await ask(stored, DIGEST, range="bytes=2-6")
    assert isinstance(small, BytesResponse)
    assert (small.status, small.content) == (206, b"small")
    assert small.headers["Content-Range"] == f"bytes 2-6/{len(SMALL)}"
    large = await ask(stored, LARGE_DIGEST, range="bytes=70000-")
    assert isinstance(large, FileResponse)
    assert (large.status, large.part) == (206, ByteRange(70000, len(LARGE) - 1))


async def test_a_range_after_the_end_is_refused(stored: StoredImage) -> None:
    answer = await ask(stored, DIGEST, range="bytes=100-")
    assert isinstance(answer, BytesResponse)
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(SMALL)}")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("HEAD", {"range": "bytes=2-6"}),
        ("HEAD", {"range": "bytes=100-"}),
        ("GET", {"range": "bytes=2-6", "if_range": '"another"'}),
    ],
)
async def test_head_and_another_blob_have_no_range(
    stored: StoredImage, method: str, headers: dict[str, str]
) -> None:
    answer = await ask(stored, DIGEST, method, **headers)
    assert isinstance(answer, BytesResponse)
    assert (answer.status, answer.content) == (200, SMALL)


async def test_a_client_that_has_the_blob_gets_no_body(stored: StoredImage) -> None:
    assert isinstance(await ask(stored, DIGEST, if_none_match=f'"{DIGEST}"'), NotModified)


@pytest.mark.parametrize(
    ("digest", "expected"),
    [(Digest.of(b"unknown"), (404, "BLOB_UNKNOWN")), ("sha256:0", (400, "DIGEST_INVALID"))],
)
async def test_unknown_and_invalid_digests_are_errors(
    stored: StoredImage, digest: object, expected: tuple[int, str]
) -> None:
    answer = await ask(stored, digest)
    assert isinstance(answer, BytesResponse)
    assert (answer.status, json.loads(answer.content)["errors"][0]["code"]) == expected


async def test_a_truncated_file_is_an_unknown_blob(stored: StoredImage) -> None:
    found = await ask(stored, LARGE_DIGEST)
    assert isinstance(found, FileResponse)
    found.path.chmod(0o600)
    found.path.write_bytes(b"")
    answer = await ask(stored, LARGE_DIGEST)
    assert answer.status == 404


class Bucket:
    """A ``BlobStore`` with one blob, which has no file."""

    async def find_cached(self, digest: Digest) -> StoredBlob:
        return StoredBlob(digest, len(LARGE))

    async def url(self, blob: StoredBlob) -> str:
        return f"https://bucket.example/{blob.digest.hex}"

    async def stream(self, _: StoredBlob, first: int, last: int) -> AsyncGenerator[bytes, None]:
        yield LARGE[first : last + 1]


def from_bucket(stored: StoredImage, *, redirect: bool) -> Blobs:
    bucket = Bucket()
    permissions = Permissions(stored.catalogue, stored.blobs, [AMD64])
    return Blobs(bucket, SmallBlobs(bucket), stored.leases, permissions, redirect=redirect)  # type: ignore[arg-type]


async def test_only_a_get_of_a_large_blob_is_redirected(stored: StoredImage) -> None:
    blobs = from_bucket(stored, redirect=True)
    answer = await blobs.get(Request("GET", "/"), "git", str(LARGE_DIGEST))
    assert (answer.status, answer.headers["Location"]) == (307, f"https://bucket.example/{LARGE_DIGEST.hex}")
    assert answer.headers["Cache-Control"] == "no-store"
    head = await blobs.get(Request("HEAD", "/"), "git", str(LARGE_DIGEST))
    assert (head.status, head.length) == (200, len(LARGE))


async def test_a_range_of_a_bucket_is_streamed(stored: StoredImage) -> None:
    blobs = from_bucket(stored, redirect=False)
    answer = await blobs.get(Request("GET", "/", {"range": "bytes=1-3"}), "git", str(LARGE_DIGEST))
    assert isinstance(answer, StreamResponse)
    assert (answer.status, answer.length) == (206, 3)
    assert [piece async for piece in answer.begin()] == [LARGE[1:4]]
