"""A storage in a directory with an image, and a fake builder: no Nix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from nixery.builds.descriptions import DescribedLayer, DescribedPackage, ImageDescription
from nixery.builds.history import BuildHistory
from nixery.builds.image import Image, ImageIndex
from nixery.builds.image_closure import ImageClosure
from nixery.builds.images import Found, Images
from nixery.builds.index_records import PackageVersion, Progress
from nixery.builds.package_index import DefaultState, NameLookup, PackageIndex
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.pins import Pinned
from nixery.closure import StorePath
from nixery.errors import BuildNotAllowed, NixeryError, TagUnknown
from nixery.image.name import ImageRequest
from nixery.image.platform import AMD64, ARM64
from nixery.image.spelling import NearNames
from nixery.nix.packages import Attribute, Definition, MetaPackageFound, Package
from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Descriptor,
    Document,
    ExecutionParameters,
    Layer,
    MediaType,
    docker_manifest,
    image_config,
    image_index,
    image_manifest,
)
from nixery.server.registry import Registry
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, SmallBlobs
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore

PIN = Pin("git:packages", "0" * 40, "0" * 40, "https://example.org/packages")

# Larger than a blob that is answered from memory.
LARGE = bytes(range(256)) * 300


@dataclass
class FakeImages(Images):
    """Returns one built image, or fails; records its requests."""

    image: Image | ImageIndex
    warning: str | None = None
    error: NixeryError | None = None
    listed: str | None = None
    asked: list[tuple[tuple[ImageRequest, ...], str]] = field(default_factory=list)

    async def get(self, requests: tuple[ImageRequest, ...], tag: str, *, may_build: bool = True) -> Found:
        self.asked.append((requests, tag))
        if not may_build:
            raise BuildNotAllowed("/".join(requests[0].requested))
        if self.error is not None:
            raise self.error
        return Found(self.image, Pinned(PIN, self.warning), self.listed or tag)


class FakeDescriptions:
    """``ImageDescriptions`` of one image, for amd64 only."""

    def __init__(self, *, public: bool = True) -> None:
        self._public = public
        self.closure: ImageClosure | None = None
        self.licences: tuple[str, ...] = ("GPL-2.0-only",)
        self.compared = self.shared = 0
        self.config: Mapping[str, object] = {"Cmd": ["sh"]}

    async def pin(self, tag: str) -> Pin:  # noqa: ARG002 -- all tags are the same
        return PIN

    ignores_tags = False

    def exact_tag(self, pin: Pin) -> str | None:
        return pin.revision

    @asynccontextmanager
    async def closures(self, images: Sequence[ImageDescription]) -> AsyncIterator[list[ImageClosure | None]]:
        assert all(image.digest == "sha256:0" for image in images)
        yield [self.closure for _ in images]

    async def digest(self, request: ImageRequest, pin: Pin) -> str | None:
        assert pin == PIN
        return "sha256:0" if "git" in request.requested and request.platform == AMD64 else None

    async def describe(self, request: ImageRequest, pin: Pin, *, compare: bool) -> ImageDescription | None:
        assert (pin, compare) == (PIN, self._public)
        if "git" not in request.requested or request.platform != AMD64:
            return None
        package = DescribedPackage("git", "2.47", self.licences, "a tool", "git-full")
        layers = (
            DescribedLayer("sha256:1", 7, ("git",), self.shared),
            DescribedLayer("sha256:2", 1, ("git",)),
        )
        return ImageDescription(
            "linux/amd64", "sha256:0", (package,), layers, self.config, {}, (), self.compared
        )


GIT = FoundPackage("git", "git", "2.47", "a tool", ("git",))
LIBRARY = FoundPackage("libstdc__2b__2b6", "libstdc++6", "12", "a library")
SLACK = FoundPackage("slack", "slack", "4", "a <b>chat</b>", (), "unfree")
WEB = FoundPackage("images.web", "images.web", "", "serves pages")
ALIAS = FoundPackage("gitfull", "gitFull", "2.47", "a tool", ("git",), alias_of="git")
UNKNOWN = FoundPackage("later", "later")

FAILURE = ("broken", "attribute 'x' <missing>")


_DERIVATION = StorePath("0" * 32 + "-git.drv")


class FakeIndex:
    """A ``PackageIndex`` of one package set, which may be slow."""

    def __init__(self) -> None:
        self.listed = asyncio.Event()
        self.listed.set()
        self.progress = Progress("r1", 31293, 8249, (FAILURE,), 101, is_complete=False)
        self.attributes = {
            "git": Attribute(
                ("git",),
                "package",
                version="2.47",
                homepage="https://git.example/",
                licences=("GPL-2.0-only",),
                main_program="git",
                platforms=("x86_64-linux",),
                outputs={"out": "/nix/store/0-git"},
            ),
            "slack": Attribute(("slack",), "package", reason="unfree", homepage="javascript:alert(1)"),
            "images.web": Attribute(
                ("images", "web"), "definition", (Definition("", "images.web", ExecutionParameters()), HELLO)
            ),
        }

        self.meta: Sequence[tuple[str, Attribute | None]] = [
            (
                "ci",
                Attribute(
                    ("ci",),
                    "meta-package",
                    (MetaPackageFound("", ("bash",)), Package("", "git", _DERIVATION, {}, "git", "2.47")),
                    description="programs of <pipelines>",
                ),
            ),
            ("debug", Attribute(("debug",), "meta-package", reason="incomplete: it stands for strace")),
            ("shell", None),
        ]

    async def names(self, tag: str) -> PackageSearch:
        await self.listed.wait()
        if tag not in {"latest", "v1"}:
            raise TagUnknown(tag, "the source has no such tag")
        return PackageSearch([GIT, LIBRARY, SLACK, WEB, ALIAS, UNKNOWN])

    async def state_progress(self, tag: str) -> Progress:
        await self.names(tag)
        return self.progress

    async def attribute(self, tag: str, name: str) -> tuple[FoundPackage, Attribute | None] | None:
        found = (await self.names(tag)).get(name)
        return None if found is None else (found, self.attributes.get(name))

    async def look_up(self, tag: str, names: Sequence[str]) -> list[NameLookup]:
        known = await self.names(tag)
        found = {name: known.get(name) for name in names}
        return [
            NameLookup(None)
            if name.startswith("set.")
            else NameLookup(package is not None, package.reason if package is not None else "")
            for name, package in found.items()
        ]

    async def near_names(self, tag: str, name: str) -> Sequence[str]:
        names = await self.names(tag)
        return await asyncio.to_thread(NearNames("", [package.name for package in names]).of, name)

    async def meta_packages(self, tag: str) -> Sequence[tuple[str, Attribute | None]]:
        await self.names(tag)
        return self.meta

    @property
    def default_state(self) -> DefaultState | None:
        return DefaultState(PIN, 1_700_000_000, self.progress) if self.listed.is_set() else None

    async def facts(self, pin: Pin) -> Mapping[str, str]:
        assert pin == PIN
        return {"ID": "nixery", "ID_LIKE": "debian", "NAME": "Nixery", "VERSION": "<12>"}

    async def versions(self, tag: str, name: str) -> list[PackageVersion]:
        await self.names(tag)
        return (await self.known_versions([name])).get(name, [])

    async def known_versions(self, names: Sequence[str]) -> Mapping[str, list[PackageVersion]]:
        await self.listed.wait()
        known = [
            PackageVersion("1" * 40, "2.47", 1_700_000_000, "latest"),
            PackageVersion("0" * 40, "2.44", None, "0" * 40),
            PackageVersion("old", "2.30", None),
        ]
        return {name: known for name in names if name == "git"}


HELLO = Package(
    "", "images.web.contents", StorePath("/nix/store/" + "0" * 32 + "-hello.drv"), {}, "hello", "2.10"
)


@dataclass
class StoredImage:
    """A storage with an image in it."""

    blobs: BlobStore
    records: RecordStore
    leases: Leases
    catalogue: Catalogue
    image: Image
    index: ImageIndex
    layer: bytes

    def registry(
        self,
        *,
        public: bool = True,
        built: Image | ImageIndex | None = None,
        log_links: bool = False,
        index: FakeIndex | None = None,
    ) -> tuple[Registry, FakeImages]:
        """Wire a registry with empty caches."""
        images = FakeImages(built or self.image)
        permissions = Permissions(self.catalogue, self.blobs, [AMD64])
        registry = Registry(
            Manifests(
                images,
                self.blobs,
                self.leases,
                self.catalogue,
                permissions,
                cast("PackageIndex | None", index),
            ),
            Blobs(self.blobs, SmallBlobs(self.blobs), self.leases, permissions),
            Discovery(self.catalogue, permissions, public=public),
            permissions,
            log_links=log_links,
        )
        return registry, images

    @property
    def config(self) -> Digest:
        """The digest of the config."""
        return Digest.parse(json.loads(self.image.manifest.content)["config"]["digest"])


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[StoredImage]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    blobs, records = (
        BlobStore(FilesystemDriver(tmp_path, temporary)),
        RecordStore(FilesystemDriver(tmp_path, temporary)),
    )
    image = await store_image(blobs, [b"a small layer", LARGE])
    platforms = [(platform.architecture, image.manifest) for platform in (AMD64, ARM64)]
    index = image_index(MediaType.OCI_INDEX, platforms)
    await blobs.put(index.descriptor.digest, index.content)
    leases = Leases(records, 3600)
    yield StoredImage(
        blobs, records, leases, Catalogue(records), image, ImageIndex(index, None, image), b"a small layer"
    )
    await leases.close()


@pytest.fixture
async def history(stored: StoredImage) -> AsyncIterator[BuildHistory]:
    history = BuildHistory(stored.records)
    yield history
    await history.close()


async def store_image(blobs: BlobStore, layers: Sequence[bytes], title: str = "an image") -> Image:
    """Store an image whose layers have the given bytes."""
    described = []
    for content in layers:
        digest = Digest.of(content)
        await blobs.put(digest, content)
        described.append(Layer(Descriptor(MediaType.OCI_LAYER_GZIP, digest, len(content)), digest, ("git",)))
    config = image_config(AMD64.architecture, ExecutionParameters(), described)
    manifest = image_manifest(config, described, {"org.opencontainers.image.title": title})
    docker = docker_manifest(config, described)
    documents: list[Document] = [config, manifest, *([docker] if docker else [])]
    for document in documents:
        await blobs.put(document.descriptor.digest, document.content)
    return Image(manifest, docker)
