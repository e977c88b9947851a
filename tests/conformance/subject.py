"""The image under test, and the requests for it."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.client import MANIFEST, RegistryClient, Response

# The media types that current clients accept.
ACCEPT = (
    f"{MANIFEST}, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)

# Digests and names that do not exist.
UNKNOWN = "sha256:" + "0" * 64
UNKNOWN_NAME = "never/asked/for"

# A further tag of a registry that creates tags on request.
TAGS = ("b", "C", "a", "1.0", "B")


@dataclass(frozen=True)
class Subject:
    """An image in the registry under test."""

    client: RegistryClient
    name: str
    tag: str

    def url(self, kind: str, reference: str) -> str:
        return f"/v2/{self.name}/{kind}/{reference}"

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request; a response shorter than its ``Content-Length`` is an error."""
        try:
            return self.client.request(method, path, headers)
        except http.client.IncompleteRead as error:
            raise AssertionError(
                f"the body has {len(error.partial)} bytes, {error.expected} less than its Content-Length: {error.partial!r}"
            ) from None

    def manifest(self, reference: str, method: str = "GET", accept: str = ACCEPT) -> Response:
        return self.ask(method, self.url("manifests", reference), {"Accept": accept})

    @cached_property
    def _pulled(self) -> Response:
        response = self.manifest(self.tag)
        assert response.status == 200, response
        return response

    @cached_property
    def digest(self) -> str:
        """The digest of the manifest's bytes, which a registry need not send."""
        return f"sha256:{hashlib.sha256(self._pulled.body).hexdigest()}"

    @cached_property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._pulled.body)
        assert "layers" in document, "the tests need the manifest of an image, not an index"
        return document

    @cached_property
    def layer(self) -> dict[str, Any]:
        """The descriptor of the largest layer."""
        layer: dict[str, Any] = max(self.document["layers"], key=lambda descriptor: descriptor["size"])
        return layer

    @property
    def blob_url(self) -> str:
        return self.url("blobs", self.layer["digest"])

    @cached_property
    def blob(self) -> bytes:
        return self.ask("GET", self.blob_url).body

    def part(self, value: str) -> Response:
        return self.ask("GET", self.blob_url, {"Range": value})
