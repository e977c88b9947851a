"""The application in this process, on real storage, with a Nix that writes down what it is asked and has nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nixery.closure.graph import Closure
from nixery.closure.store_path import StorePath
from nixery.errors import PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.request import ImageRequest
from nixery.layering.popularity import Popularity
from nixery.nix.builder import Package
from nixery.oci.digest import Digest
from nixery.packing.compression import Gzip
from nixery.packing.layer_packer import LayerPacker
from nixery.pipeline.events import BuildEvent
from nixery.pipeline.image_builder import ImageBuilder
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.server.asgi import Application
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.router import Registry
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemBlobStore, FilesystemRecordStore
from tests.support.client import MANIFEST, Response

# What is stored before the first request.
NAME, TAGS = "stored/image", ("1.0", "latest")
LAYER = b"0123456789"
STORED_MANIFEST = b'{"schemaVersion":2,"mediaType":"%s"}' % MANIFEST.encode()
LAYER_DIGEST, MANIFEST_DIGEST = Digest.of(LAYER), Digest.of(STORED_MANIFEST)


class RecordingBuilder:
    """A ``NixBuilder`` whose package set is empty."""

    def __init__(self) -> None:
        self.requests: list[ImageRequest] = []

    async def evaluate(self, request: ImageRequest) -> tuple[Package, ...]:
        self.requests.append(request)
        raise PackagesUnavailable(
            tuple(UnavailablePackage(name, Reason.MISSING) for name in request.packages)
        )

    def realise(self, packages: Sequence[Package]) -> AbstractAsyncContextManager[None]:
        raise AssertionError(packages)

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        raise AssertionError(paths)


class _Silence:
    """A ``BuildObserver``."""

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        pass


@dataclass
class ApplicationUnderTest:
    """Asked as the web server would ask it."""

    application: Application
    nix: RecordingBuilder
    _runner: asyncio.Runner = field(repr=False)

    def request(
        self, method: str, path: str, query: bytes = b"", headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """Forget what Nix was asked before, then ask."""
        self.nix.requests.clear()
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            raise AssertionError("nothing here reads a body")

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        self._runner.run(asyncio.wait_for(self.application(scope, receive, send), timeout=10))
        return _response(sent)


def _response(sent: list[MutableMapping[str, Any]]) -> Response:
    start, *rest = sent
    assert start["type"] == "http.response.start"
    headers: dict[str, str] = {}
    for name, value in start["headers"]:
        assert name == name.lower(), name
        assert not set(name + value) & set(b"\r\n\0"), (name, value)
        assert name.decode() not in headers, f"{name!r} comes twice"
        headers[name.decode()] = value.decode("ascii")
    body = b""
    for message in rest:
        match message["type"]:
            case "http.response.body":
                body += message["body"]
            case "http.response.pathsend":
                body += Path(message["path"]).read_bytes()
            case other:
                raise AssertionError(other)
    return Response(start["status"], headers, body)


@contextmanager
def application_under_test(directory: Path) -> Iterator[ApplicationUnderTest]:
    """Build one whose storage is in a directory."""
    temporary = directory / "temporary"
    temporary.mkdir()
    blobs, records = FilesystemBlobStore(directory, temporary), FilesystemRecordStore(directory, temporary)
    catalogue, nix = Catalogue(records), RecordingBuilder()
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as executor:
        layers = LayerPublisher(blobs, records, LayerPacker(Gzip()), executor)
        builder = ImageBuilder(nix, layers, blobs, Popularity(), _Silence())
        registry = Registry(Manifests(builder, blobs, catalogue), Blobs(blobs), Discovery(catalogue))
        runner.run(blobs.put(LAYER_DIGEST, LAYER))
        runner.run(blobs.put(MANIFEST_DIGEST, STORED_MANIFEST))
        for tag in TAGS:
            runner.run(catalogue.record_tag(NAME, tag, MANIFEST_DIGEST))
        yield ApplicationUnderTest(Application(registry), nix, runner)
        runner.run(builder.close())
