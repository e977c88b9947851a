"""Manifests, by tag and by digest."""

from __future__ import annotations

import asyncio
import json
from contextvars import copy_context
from typing import Any

import pytest

from nixery.errors import BuildFailed, ManifestUnknown, TagUnknown
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.oci.documents import Document, MediaType
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.http import BytesResponse, NotModified, Request
from nixery.server.registry import Registry
from nixery.server.registry import manifests as module
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.storage.blobs import StoredBlob
from tests.unit.server.conftest import PIN, FakeIndex, StoredImage, store_image


async def get(registry: Registry, reference: object, **headers: str) -> BytesResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await registry.answer(Request("GET", f"/v2/shell/git/manifests/{reference}", named))
    assert isinstance(answer, BytesResponse)
    return answer


def code(answer: BytesResponse) -> tuple[int, str]:
    return answer.status, json.loads(answer.content)["errors"][0]["code"]


async def test_a_tag_is_built_and_recorded(stored: StoredImage) -> None:
    registry, images = stored.registry()
    answer = await get(registry, "v1")
    manifest = stored.image.manifest
    assert (answer.status, answer.content) == (200, manifest.content)
    assert answer.headers == {
        "Content-Type": MediaType.OCI_MANIFEST.value,
        "Docker-Content-Digest": str(manifest.descriptor.digest),
        "ETag": f'"{manifest.descriptor.digest}"',
        "Vary": "Accept",
        "Nixery-Revision": PIN.revision,
    }
    ((requests, tag),) = images.asked
    assert (tag, [request.platform for request in requests]) == ("v1", [AMD64])
    assert await stored.catalogue.tags("shell/git", "", 10) == ["v1"]


async def test_a_client_that_has_the_manifest_gets_no_body(stored: StoredImage) -> None:
    registry, _ = stored.registry()
    etag = f'"{stored.image.manifest.descriptor.digest}"'
    answer = await registry.answer(Request("GET", "/v2/shell/git/manifests/latest", {"if-none-match": etag}))
    assert isinstance(answer, NotModified)
    assert answer.headers["ETag"] == etag


async def test_an_outdated_pin_is_a_warning_in_a_quoted_string(stored: StoredImage) -> None:
    registry, images = stored.registry()
    images.warning = 'cannot reach "https://example.org": n\u00f6\n'
    answer = await get(registry, "latest")
    assert answer.headers["Warning"] == '299 - "cannot reach  https://example.org : n  "'


async def test_a_tag_that_a_directory_ignores_is_a_warning(stored: StoredImage) -> None:
    registry, images = stored.registry()
    images.listed = "latest"
    assert "Warning" not in (await get(registry, "latest")).headers
    answer = await get(registry, "2.7")
    assert answer.status == 200
    assert answer.headers["Warning"].startswith(
        '299 - "the tag was ignored: the package source has one state'
    )


async def test_the_error_about_an_unknown_tag_has_the_known_versions(stored: StoredImage) -> None:
    registry, images = stored.registry(index=FakeIndex())
    images.error = TagUnknown("2.4", "the package source has no such tag")
    answer = await get(registry, "2.4")
    assert code(answer) == (404, "MANIFEST_UNKNOWN")
    assert json.loads(answer.content)["errors"][0]["message"] == (
        "tag 2.4: the package source has no such tag (a tag is a state of the package set, not a version of a package; "
        f"here, git is 2.47 at latest, 2.44 at {'0' * 40}, 2.30 at old)"
    )
    # No index, no hint; and a commit is no version.
    registry, images = stored.registry()
    images.error = TagUnknown("2.4", "no")
    assert b"version" not in (await get(registry, "2.4")).content
    registry, images = stored.registry(index=FakeIndex())
    images.error = TagUnknown("0" * 40, "no")
    assert b"version" not in (await get(registry, "0" * 40)).content


async def test_an_unknown_tag_does_not_wait_for_versions(
    stored: StoredImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_VERSIONS_TIMEOUT", 0)
    index = FakeIndex()
    index.listed.clear()
    registry, images = stored.registry(index=index)
    images.error = TagUnknown("2.4", "no")
    message = json.loads((await get(registry, "2.4")).content)["errors"][0]["message"]
    assert message == "tag 2.4: no (a tag is a state of the package set, not a version of a package)"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", MediaType.OCI_MANIFEST),
        ("text/html", MediaType.OCI_MANIFEST),
        (MediaType.DOCKER_MANIFEST, MediaType.DOCKER_MANIFEST),
        (f"{MediaType.DOCKER_MANIFEST}, {MediaType.OCI_MANIFEST};q=0.5", MediaType.OCI_MANIFEST),
    ],
)
async def test_the_family_of_a_manifest_is_negotiated(
    stored: StoredImage, accept: str, media_type: MediaType
) -> None:
    registry, _ = stored.registry()
    answer = await get(registry, "latest", accept=accept)
    assert answer.headers["Content-Type"] == media_type.value
    assert json.loads(answer.content)["mediaType"] == media_type


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", MediaType.OCI_MANIFEST),
        ("*/*", MediaType.OCI_INDEX),
        (MediaType.OCI_INDEX, MediaType.OCI_INDEX),
        (MediaType.OCI_MANIFEST, MediaType.OCI_MANIFEST),
        (f"{MediaType.DOCKER_MANIFEST}, */*", MediaType.DOCKER_MANIFEST),
    ],
)
async def test_a_client_that_accepts_no_index_gets_its_first_manifest(
    stored: StoredImage, accept: str, media_type: MediaType
) -> None:
    registry, _ = stored.registry(built=stored.index)
    assert (await get(registry, "latest", accept=accept)).headers["Content-Type"] == media_type.value


async def test_a_digest_is_read_from_the_storage_and_claimed(stored: StoredImage) -> None:
    registry, images = stored.registry()
    digest = stored.image.manifest.descriptor.digest
    answer = await get(registry, digest)
    assert (answer.status, answer.content) == (200, stored.image.manifest.content)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert images.asked == []
    assert stored.leases.renew([digest])
    index = await get(registry, stored.index.index.descriptor.digest)
    assert index.headers["Content-Type"] == MediaType.OCI_INDEX.value


async def test_a_cached_manifest_is_not_read_again(
    stored: StoredImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, _ = stored.registry()
    digest = stored.image.manifest.descriptor.digest
    first = await get(registry, digest)

    async def unreadable(*_: object) -> bytes:
        raise AssertionError("read again")

    monkeypatch.setattr(stored.blobs, "read", unreadable)
    assert (await get(registry, digest)).content == first.content


async def test_configs_layers_and_unknown_digests_are_no_manifests(stored: StoredImage) -> None:
    registry, _ = stored.registry()
    for digest in (stored.config, Digest.of(stored.layer), Digest.of(b"unknown")):
        assert code(await get(registry, digest)) == (404, "MANIFEST_UNKNOWN")


async def test_a_manifest_that_lost_a_layer_is_unknown(stored: StoredImage) -> None:
    registry, _ = stored.registry()
    await stored.blobs.delete(Digest.of(stored.layer))
    answer = await get(registry, stored.image.manifest.descriptor.digest)
    assert code(answer) == (404, "MANIFEST_UNKNOWN")


async def test_a_large_blob_is_parsed_only_if_it_ends_as_a_manifest(
    stored: StoredImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, _ = stored.registry()
    large = await store_image(stored.blobs, [b"a layer"], "x" * 200_000)
    # A config may have as many labels as its author likes, and a layer any bytes.
    labels = Document.of(MediaType.OCI_CONFIG, {"config": {"Labels": {"x": "y" * 200_000}}})
    await stored.blobs.put(labels.descriptor.digest, labels.content)
    parsed = []

    def loads(content: bytes) -> Any:  # noqa: ANN401 -- JSON is anything
        parsed.append(len(content))
        return json.JSONDecoder().decode(content.decode())

    monkeypatch.setattr(json, "loads", loads)
    config = await get(registry, labels.descriptor.digest)
    assert parsed == []
    monkeypatch.undo()
    assert code(config) == (404, "MANIFEST_UNKNOWN")
    answer = await get(registry, large.manifest.descriptor.digest)
    assert (answer.status, answer.headers["Content-Type"]) == (200, MediaType.OCI_MANIFEST.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/v2/shell/git/manifests/sha256-{'0' * 64}", (404, "MANIFEST_UNKNOWN")),
        ("/v2/shell/git/manifests/sha256:0", (400, "DIGEST_INVALID")),
        ("/v2/shell/git/manifests/.hidden", (404, "MANIFEST_UNKNOWN")),
        ("/v2/Shell/manifests/latest", (400, "NAME_INVALID")),
        (f"/v2/Shell/manifests/sha256:{'0' * 64}", (400, "NAME_INVALID")),
    ],
)
async def test_invalid_names_and_references_build_nothing(
    stored: StoredImage, path: str, expected: tuple[int, str]
) -> None:
    registry, images = stored.registry()
    answer = await registry.answer(Request("GET", path))
    assert isinstance(answer, BytesResponse)
    assert code(answer) == expected
    assert images.asked == []


async def test_a_failed_build_links_to_its_log_if_builds_are_public(stored: StoredImage) -> None:
    for public in (True, False):
        registry, images = stored.registry(log_links=public)
        images.error = BuildFailed("git.drv", ("no compiler",), "")
        images.error.build = "0123"
        answer = await get(registry, "latest", host="registry.example")
        assert code(answer) == (422, "MANIFEST_UNKNOWN")
        assert (b"http://registry.example/builds/0123" in answer.content) is public


class Layers:
    """A ``BlobStore`` with layers only; each read ends when the test says so."""

    def __init__(self) -> None:
        self.reading: list[Digest] = []
        self.most = 0
        self.may_end = asyncio.Semaphore(0)

    async def find(self, digest: Digest) -> StoredBlob:
        return StoredBlob(digest, 4_000_000)

    async def read(self, blob: StoredBlob) -> bytes:
        self.reading.append(blob.digest)
        self.most = max(self.most, len(self.reading))
        await self.may_end.acquire()
        self.reading.remove(blob.digest)
        return b"\x1f\x8b"


class Unused:
    def renew(self, _: object) -> bool:
        return False


async def test_layers_that_one_client_requests_as_manifests_are_read_in_turns() -> None:
    layers = Layers()
    permissions = Permissions(None, layers, [AMD64])  # type: ignore[arg-type]
    manifests = Manifests(None, layers, Unused(), None, permissions)  # type: ignore[arg-type]
    request = Request("GET", "/v2/hello/manifests/")

    def ask(address: str, digest: Digest) -> asyncio.Task[object]:
        async def get() -> object:
            enter_request(RequestContext("id", Client(address)))
            return await manifests.get(request, "hello", str(digest))

        return copy_context().run(asyncio.ensure_future, get())

    theirs = [ask("192.0.2.1", Digest(f"{number:064x}")) for number in range(300)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(layers.reading) < 50
    other = Digest("f" * 64)
    asked = ask("192.0.2.2", other)
    layers.may_end.release()
    for _ in range(5):
        await asyncio.sleep(0)
    assert other in layers.reading, "the other client is next"
    for _ in range(301):
        layers.may_end.release()
    for outcome in await asyncio.gather(*theirs, asked, return_exceptions=True):
        assert isinstance(outcome, ManifestUnknown)
    assert layers.most < 50
    with pytest.raises(ManifestUnknown):
        await asked
