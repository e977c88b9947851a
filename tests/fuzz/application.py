"""The application in this process, on real storage, with an empty Nix that records its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from nixery.builds.build_cache import BuildCache
from nixery.builds.builder import ImageBounds, ImageBuilder
from nixery.builds.coordinator import BuildBounds, BuildCoordinator
from nixery.builds.creation_date import CreationDate
from nixery.builds.evaluator import Evaluator
from nixery.builds.image_closure import ImageClosures
from nixery.builds.images import Images, Indexes
from nixery.builds.layers import LayerPublisher, Packing
from nixery.builds.pins import Pins
from nixery.builds.provision import Provider
from nixery.builds.slots import Slots
from nixery.errors import PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.platform import AMD64, Platform
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks
from nixery.nix.packages import EvaluatedItem, PackageSet
from nixery.nix.realisation import Nix
from nixery.oci.digest import Digest
from nixery.packing.compression import compression
from nixery.packing.packer import LayerPacker
from nixery.server.app import Application
from nixery.server.health import PATHS, Health
from nixery.server.http import Headers, Transport
from nixery.server.observation import Observation
from nixery.server.registry import Registry
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.sources.directory import DirectorySource
from nixery.storage.blobs import BlobStore, SmallBlobs
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore
from nixery.telemetry.metrics import Metrics, RequestCounts
from tests.support.client import MANIFEST, Response

# Stored before the first request.
NAME, TAGS = "stored/image", ("1.0", "latest")
LAYER = b"0123456789"
STORED_MANIFEST = b'{"schemaVersion":2,"mediaType":"%s"}' % MANIFEST.encode()
LAYER_DIGEST, MANIFEST_DIGEST = Digest.of(LAYER), Digest.of(STORED_MANIFEST)


class RecordingBuilder:
    """A ``Nix`` whose package set is empty."""

    def __init__(self) -> None:
        self.requests: list[tuple[Sequence[str], Sequence[str]]] = []

    async def evaluate(
        self,
        wanted: Sequence[str],
        optional: Sequence[str],
        platform: Platform,  # noqa: ARG002
        package_set: PackageSet,  # noqa: ARG002
    ) -> Mapping[str, Sequence[EvaluatedItem]]:
        self.requests.append((wanted, optional))
        if not wanted:
            raise PackagesUnavailable(())  # the image with nothing in it would have to be built
        missing = {name: (UnavailablePackage(name, Reason.MISSING),) for name in wanted}
        return {**missing, **dict.fromkeys(optional, ())}


@dataclass
class ApplicationUnderTest:
    """Calls the application as the web server does."""

    application: Application
    nix: RecordingBuilder
    _runner: asyncio.Runner = field(repr=False)

    def request(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> Response:
        """Clear the recorded calls of Nix, then send a request; add a host if the headers have none."""
        self.nix.requests.clear()
        given = list(headers)
        if not any(name.lower() == "host" for name, _ in given):
            given.append(("host", "registry.example"))
        scope = _Scope(method, path, query.decode("latin-1"), _Headers(given))
        protocol = _Protocol(body)
        self._runner.run(asyncio.wait_for(self.application.__rsgi__(scope, protocol), timeout=10))
        (response,) = protocol.responses
        return response


class _Headers:
    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._items = [(name.lower(), value) for name, value in headers]

    def items(self) -> list[tuple[str, str]]:
        return self._items


@dataclass
class _Scope:
    method: str
    path: str
    query_string: str
    headers: Headers
    client: str = "127.0.0.1:50000"
    http_version: str = "1.1"
    authority: str | None = None


class _Events:
    """Calls back with the first piece of a stream."""

    def __init__(self, begun: Callable[[bytes], None]) -> None:
        self._begun = begun
        self._is_first = True

    async def send_bytes(self, piece: bytes) -> None:
        if self._is_first:
            self._begun(piece)
        self._is_first = False


class _Protocol:
    """Receives a response as the web server does; an empty body counts as long as its header says."""

    def __init__(self, body: bytes = b"") -> None:
        self.responses: list[Response] = []
        self._body = body

    async def client_disconnect(self) -> None:
        await asyncio.Event().wait()

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._respond(status, headers, b"")

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self._respond(status, headers, body)

    def response_file(self, status: int, headers: list[tuple[str, str]], file: str) -> None:
        self._respond(status, headers, Path(file).read_bytes())

    def response_file_range(
        self, status: int, headers: list[tuple[str, str]], file: str, start: int, end: int
    ) -> None:
        self._respond(status, headers, Path(file).read_bytes()[start:end])

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Transport:
        # The web server sends files from disk, so only events are streamed.
        assert ("Content-Type", "text/event-stream") in headers, (status, headers)
        return _Events(lambda events: self._respond(status, headers, events))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    def _respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        by_name: dict[str, str] = {}
        for name, value in headers:
            assert not set(name + value) & set("\r\n\0"), (name, value)
            assert value.isascii(), (name, value)
            assert name.lower() not in by_name, f"{name!r} is repeated"
            by_name[name.lower()] = value
        # These differ in every response; all other headers can be compared.
        assert by_name.pop("x-request-id")
        self.responses.append(Response(status, by_name, body))


@contextmanager
def application_under_test(directory: Path) -> Iterator[ApplicationUnderTest]:
    """Build one whose storage is in a directory."""
    temporary = directory / "temporary"
    temporary.mkdir()
    blobs, records = (
        BlobStore(FilesystemDriver(directory, temporary)),
        RecordStore(FilesystemDriver(directory, temporary)),
    )
    catalogue, leases, nix = Catalogue(records), Leases(records, 3600), RecordingBuilder()
    with asyncio.Runner() as runner:
        packing = Packing(LayerPacker(compression("gzip")), 1, FileLocks(directory / "locks"))
        layers = LayerPublisher(blobs, records, packing)
        source = DirectorySource(directory / "set", {})
        (directory / "set").mkdir()
        evaluator = Evaluator(source, cast("Nix", nix), None)
        builder = ImageBuilder(
            evaluator,
            Provider(cast("Nix", nix)),
            layers,
            blobs,
            leases,
            ImageClosures(records),
            Popularity(),
            ImageBounds(94),
            CreationDate(),
        )
        cache = BuildCache(records, blobs, leases, "")
        builds = BuildCoordinator(cache, builder, (), BuildBounds(Slots(1, 10)))
        images = Images(Pins(source, records, 3600), builds, Indexes(builds, blobs, leases), 100)
        permissions = Permissions(catalogue, blobs, [AMD64])
        registry = Registry(
            Manifests(images, blobs, leases, catalogue, permissions),
            Blobs(blobs, SmallBlobs(blobs), leases, permissions),
            Discovery(catalogue, permissions),
            permissions,
        )
        runner.run(blobs.put(LAYER_DIGEST, LAYER))
        runner.run(blobs.put(MANIFEST_DIGEST, STORED_MANIFEST))
        for tag in TAGS:
            runner.run(catalogue.record_tag(NAME, tag, MANIFEST_DIGEST))
        routes = Health({}, Metrics()).public_routes(private=True)
        others = {path: routes[path] for path in PATHS}
        application = Application(registry.answer, Observation(RequestCounts()), others)
        yield ApplicationUnderTest(application, nix, runner)
        runner.run(images.close())
        runner.run(layers.close())
        runner.run(leases.close())
