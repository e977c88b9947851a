"""The image that is asked for, and the questions."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.client import MANIFEST, RegistryClient, Response

# What a client of today accepts; a registry may answer with any of them.
ACCEPT = (
    f"{MANIFEST}, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)

# Digests and names of nothing.
UNKNOWN = "sha256:" + "0" * 64
UNKNOWN_NAME = "never/asked/for"

# What a registry that makes what it is asked for has, beside the tag that is asked for.
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
        """A request; an answer that is shorter than its ``Content-Length`` says is a failure that says so."""
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
        """Of the manifest's bytes: a registry need not tell it."""
        return f"sha256:{hashlib.sha256(self._pulled.body).hexdigest()}"

    @cached_property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._pulled.body)
        assert "layers" in document, "the tests need the manifest of an image, not an index"
        return document

    @cached_property
    def layer(self) -> dict[str, Any]:
        """The largest layer's descriptor."""
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
