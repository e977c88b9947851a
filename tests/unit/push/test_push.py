"""Pushing, over real HTTP, to a registry that wants tokens."""

from __future__ import annotations

import base64
import gc
import json
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from nixery.errors import PushFailed
from nixery.oci.digest import Digest
from nixery.oci.documents import MediaType, canonical_json
from nixery.push.client import Target
from nixery.push.push import BlobPushed, BytesPushed, Pushed, PushEvent, PushOptions, PushStarted, push
from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver
from tests.support.token_registry import TokenRegistry, token_registry

# The last blob is larger than a single read.
_LAYERS = (b"one", b"two" * 1000, bytes(1_000_000))


@pytest.fixture
def registry() -> Iterator[TokenRegistry]:
    with token_registry() as registry:
        yield registry


@pytest.fixture
async def blobs(tmp_path: Path) -> BlobStore:
    (tmp_path / "temporary").mkdir()
    return BlobStore(FilesystemDriver(tmp_path / "storage", tmp_path / "temporary"))


async def image(blobs: BlobStore) -> Digest:
    """An index of one image."""

    async def store(content: bytes, media_type: str) -> dict[str, object]:
        await blobs.put(Digest.of(content), content)
        return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}

    config = await store(b"{}", MediaType.OCI_CONFIG)
    layers = [await store(layer, MediaType.OCI_LAYER_GZIP) for layer in _LAYERS]
    document = {"mediaType": MediaType.OCI_MANIFEST, "config": config, "layers": layers}
    manifest = await store(canonical_json(document), MediaType.OCI_MANIFEST)
    index = canonical_json({"mediaType": MediaType.OCI_INDEX, "manifests": [manifest]})
    return Digest.parse(str((await store(index, MediaType.OCI_INDEX))["digest"]))


async def pushed(
    blobs: BlobStore, registry: TokenRegistry, directory: Path, entry: dict[str, str]
) -> tuple[Digest, list[PushEvent]]:
    (directory / "config.json").write_text(json.dumps({"auths": {registry.address: entry}}))
    root, events = await image(blobs), list[PushEvent]()
    target = Target(registry.address, "tools/git", "1")
    await push(blobs, root, target, {"DOCKER_CONFIG": str(directory)}, events.append, PushOptions(delay=0.01))
    return root, events


@pytest.fixture(autouse=True)
def _transports() -> Iterator[None]:
    """asyncio leaves the transport of a TLS handshake that failed to the garbage collector, which would warn in another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def login(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(user.encode()).decode()}


@pytest.mark.parametrize("entry", [login("me:sesame"), {"identitytoken": "refresh"}])
async def test_blobs_and_manifests_arrive_before_the_tag(
    blobs: BlobStore, registry: TokenRegistry, tmp_path: Path, entry: dict[str, str]
) -> None:
    root, events = await pushed(blobs, registry, tmp_path, entry)
    assert sorted(registry.blobs.values()) == sorted((b"{}", *_LAYERS))
    assert str(Digest.of(registry.manifests["1"])) == str(root)
    assert registry.log[-1] == "PUT /v2/tools/git/manifests/1"
    assert registry.log[-2].startswith("PUT /v2/tools/git/manifests/sha256:")
    assert set(registry.scopes) == {"repository:tools/git:pull,push"}
    size = sum(map(len, _LAYERS)) + 2
    assert events[0] == PushStarted(f"{registry.address}/tools/git:1", 4, size)
    assert isinstance(events[-1], Pushed)
    assert sum(event.size for event in events if isinstance(event, BytesPushed)) == size


async def test_blobs_that_the_target_has_are_not_sent(
    blobs: BlobStore, registry: TokenRegistry, tmp_path: Path
) -> None:
    registry.blobs = {str(Digest.of(layer)): layer for layer in _LAYERS}
    _, events = await pushed(blobs, registry, tmp_path, login("me:sesame"))
    how = [event.how for event in events if isinstance(event, BlobPushed)]
    assert sorted(how) == ["present"] * 3 + ["uploaded"]
    assert registry.log.count("PUT /upload") == 1


async def test_an_expired_token_is_renewed(blobs: BlobStore, registry: TokenRegistry, tmp_path: Path) -> None:
    # More than the concurrent requests, fewer than all requests.
    registry.uses = 8
    await pushed(blobs, registry, tmp_path, login("me:sesame"))
    assert len(registry.scopes) >= 2
    assert len(registry.blobs) == 4


async def test_temporary_failures_are_retried(
    blobs: BlobStore, registry: TokenRegistry, tmp_path: Path
) -> None:
    registry.failures = 3
    _, events = await pushed(blobs, registry, tmp_path, login("me:sesame"))
    assert len(registry.blobs) == 4
    assert registry.log.count("PUT /upload") == 7
    # Bytes of failed attempts do not count.
    assert sum(event.size for event in events if isinstance(event, BytesPushed)) == sum(map(len, _LAYERS)) + 2


async def test_a_wrong_password_is_an_error(
    blobs: BlobStore, registry: TokenRegistry, tmp_path: Path
) -> None:
    with pytest.raises(PushFailed, match=r"no token from 127\.0\.0\.1: 401"):
        await pushed(blobs, registry, tmp_path, login("me:wrong"))
    assert registry.manifests == {}


@pytest.mark.parametrize(("status", "meaning"), [(403, "no permission to push"), (404, "no such repository")])
async def test_a_refusal_is_not_retried(
    blobs: BlobStore, registry: TokenRegistry, tmp_path: Path, status: int, meaning: str
) -> None:
    registry.refused = status
    with pytest.raises(PushFailed, match=rf"{status}: .*{meaning}.*DENIED not for you"):
        await pushed(blobs, registry, tmp_path, login("me:sesame"))
    # Four concurrent uploads, each with at most one request and one retry for its token.
    assert sum(line.startswith("POST /v2") for line in registry.log) <= 8
    assert registry.manifests == {}


async def test_an_untrusted_certificate_is_an_error(blobs: BlobStore, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with token_registry(context) as registry:
        with pytest.raises(PushFailed, match=r"its certificate is not trusted.*SSL_CERT_FILE"):
            await pushed(blobs, registry, tmp_path, login("me:sesame"))
        assert registry.log == []
