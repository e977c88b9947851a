"""The registry that is tested: a server of our own, or any other with an image in it (``--registry``, ``--image``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from tests.support.client import MANIFEST, RegistryClient, Response
from tests.support.nix import PACKAGE_SETS, nix_environment
from tests.support.server import running_server

# What a client of today accepts; a registry may answer with any of them.
ACCEPT = (
    f"{MANIFEST}, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)


@dataclass(frozen=True)
class Subject:
    """An image in the registry under test."""

    client: RegistryClient
    name: str
    tag: str

    def url(self, kind: str, reference: str) -> str:
        return f"/v2/{self.name}/{kind}/{reference}"

    def manifest(self, reference: str, method: str = "GET") -> Response:
        return self.client.request(method, self.url("manifests", reference), {"Accept": ACCEPT})

    @cached_property
    def digest(self) -> str:
        return self.manifest(self.tag).headers["docker-content-digest"]

    @cached_property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.manifest(self.tag).body)
        return document

    @cached_property
    def layer(self) -> dict[str, Any]:
        """The largest layer's descriptor."""
        layer: dict[str, Any] = max(self.document["layers"], key=lambda descriptor: descriptor["size"])
        return layer

    @cached_property
    def blob(self) -> bytes:
        return self.client.get(self.url("blobs", self.layer["digest"])).body

    def part(self, value: str) -> Response:
        return self.client.get(self.url("blobs", self.layer["digest"]), {"Range": value})


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    name, _, tag = request.config.getoption("--image").rpartition(":")
    address: str | None = request.config.getoption("--registry")
    if address is not None:
        host, _, port = address.rpartition(":")
        yield Subject(RegistryClient(host, int(port)), name, tag)
        return
    directory = tmp_path_factory.mktemp("conformance")
    settings = {"NIXERY_PKGS_PATH": str(PACKAGE_SETS), **nix_environment(directory)}
    with running_server(directory, settings) as server:
        yield Subject(server.client, name, tag)
