"""The cache of finished images, with made-up images in a real storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nixery.builds.build_cache import BuildCache
from nixery.builds.image import Image
from nixery.image.name import ImageRequest, parse_image_name
from nixery.image.platform import ARM64
from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Descriptor,
    ExecutionParameters,
    Layer,
    MediaType,
    docker_manifest,
    image_config,
    image_manifest,
)
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, StoredFile
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore

PIN = Pin("path:/set", "abc", "abc")
REQUEST = parse_image_name("git/htop")


class Store:
    """A store with one image in it."""

    def __init__(self, blobs: BlobStore, records: RecordStore) -> None:
        self.blobs = blobs
        self.records = records
        self.leases = Leases(self.records, 3600)
        self.now = 0.0

    def cache(self, identity: str = "this program", *, reproducible: bool = True) -> BuildCache:
        return BuildCache(
            self.records, self.blobs, self.leases, identity, lambda: self.now, reproducible=reproducible
        )

    async def image(
        self, layer_type: MediaType = MediaType.OCI_LAYER_GZIP, created: int | None = None
    ) -> Image:
        content = b"a layer"
        layer = Layer(Descriptor(layer_type, Digest.of(content), len(content)), Digest.of(b""), ())
        config = image_config(ARM64.architecture, ExecutionParameters((), ()), [layer], created)
        image = Image(image_manifest(config, [layer]), docker_manifest(config, [layer]))
        await self.blobs.put(layer.descriptor.digest, content)
        for document in (config, *image.manifests):
            await self.blobs.put(document.descriptor.digest, document.content)
        return image

    async def paths(self, image: Image) -> dict[str, Path]:
        found = {}
        assert image.docker_manifest is not None
        for kind, digest in {
            "manifest": image.manifest.descriptor.digest,
            "docker manifest": image.docker_manifest.descriptor.digest,
            "layer": Digest.of(b"a layer"),
        }.items():
            blob = await self.blobs.find(digest)
            assert isinstance(blob, StoredFile)
            found[kind] = blob.path
        return found


@pytest.fixture
def store(blobs: BlobStore, records: RecordStore) -> Store:
    return Store(blobs, records)


async def test_another_server_on_the_storage_finds_the_image(store: Store) -> None:
    cache, image = store.cache(), await store.image()
    assert await cache.find(PIN, REQUEST) is None
    await cache.add(PIN, REQUEST, image)
    assert await cache.find_recent(PIN, REQUEST) == image
    other = store.cache()
    assert await other.find_recent(PIN, REQUEST) is None
    assert await other.find(PIN, REQUEST) == image
    assert await other.find_recent(PIN, REQUEST) == image


async def test_the_first_of_two_servers_decides_about_the_date_of_a_build(store: Store) -> None:
    one, other = store.cache(reproducible=False), store.cache(reproducible=False)
    first, second = await store.image(created=1_700_000_000), await store.image(created=1_700_000_001)
    assert await one.add(PIN, REQUEST, first) == first
    assert await other.add(PIN, REQUEST, second) == first
    assert await other.find_recent(PIN, REQUEST) == first
    # An image with a lost blob is no answer.
    (await store.paths(first))["manifest"].unlink()
    assert await other.add(PIN, REQUEST, second) == second
    assert await store.cache().find(PIN, REQUEST) == second


ANYTHING_ELSE: list[tuple[str, Pin, ImageRequest]] = [
    ("another program", PIN, REQUEST),
    ("this program", replace(PIN, source="path:/other"), REQUEST),
    ("this program", replace(PIN, identity="abd"), REQUEST),
    ("this program", replace(PIN, revision="another"), REQUEST),
    ("this program", replace(PIN, url="https://git.example/set"), REQUEST),
    ("this program", replace(PIN, created=1_700_000_000), REQUEST),
    ("this program", PIN, parse_image_name("git")),
    ("this program", PIN, parse_image_name("arm64/git/htop")),
    ("this program", PIN, parse_image_name("shell/git/htop")),
    # An image with the packages of `shell`, requested by name, starts no shell.
    ("this program", PIN, replace(REQUEST, shell=True)),  # noqa: S604 -- no such shell
    ("this program", PIN, replace(REQUEST, packages=("gith", "top"))),
    ("this program", PIN, replace(REQUEST, packages=("git", "htop", "cacert"), optional_packages=())),
]


@pytest.mark.parametrize(("identity", "pin", "request_"), ANYTHING_ELSE)
async def test_anything_that_determines_an_image_is_part_of_its_key(
    store: Store, identity: str, pin: Pin, request_: ImageRequest
) -> None:
    await store.cache().add(PIN, REQUEST, await store.image())
    assert await store.cache(identity).find(pin, request_) is None


async def test_package_names_cannot_run_into_each_other_in_the_key(store: Store) -> None:
    # The original Nixery joined names without a separator, and served `ab/c` for `a/bc`.
    await store.cache().add(PIN, parse_image_name("ab/c"), await store.image())
    assert await store.cache().find(PIN, parse_image_name("a/bc")) is None


async def test_an_image_without_docker_media_types_is_found(store: Store) -> None:
    image = await store.image(MediaType.OCI_LAYER_ZSTD)
    assert image.docker_manifest is None
    await store.cache().add(PIN, REQUEST, image)
    assert await store.cache().find(PIN, REQUEST) == image


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("kind", ["manifest", "docker manifest", "layer"])
async def test_an_image_with_a_lost_or_truncated_part_is_not_found(
    store: Store, kind: str, damage: Callable[[Path], None]
) -> None:
    cache, image = store.cache(), await store.image()
    await cache.add(PIN, REQUEST, image)
    damage((await store.paths(image))[kind])
    assert await store.cache().find(PIN, REQUEST) is None
    # A server that has cached the image notices a second later.
    store.now += 2
    assert await cache.find_recent(PIN, REQUEST) is None
    await store.image()
    assert await cache.find(PIN, REQUEST) == image


async def test_a_manifest_with_changed_content_is_not_found(store: Store) -> None:
    image = await store.image()
    await store.cache().add(PIN, REQUEST, image)
    path = (await store.paths(image))["manifest"]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"2", b"3", 1))
    assert await store.cache().find(PIN, REQUEST) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"manifest": "sha256:0", "docker_manifest": "sha256:0"}']
)
async def test_a_torn_record_of_an_image_is_ignored(store: Store, content: bytes, tmp_path: Path) -> None:
    await store.cache().add(PIN, REQUEST, await store.image())
    (record,) = [path for path in (tmp_path / "records").rglob("*") if path.is_file()]
    record.chmod(0o600)
    record.write_bytes(content)
    assert await store.cache().find(PIN, REQUEST) is None
