"""A small registry client; tests check the responses themselves."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.support.pulled_image import LayerBlob, PulledImage

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Response:
    """A complete response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 -- JSON is anything
        return json.loads(self.body)

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors of an error document, whose form is checked."""
        assert self.headers["content-type"].partition(";")[0] == "application/json", self.headers
        document = self.json()
        assert set(document) == {"errors"}, document
        errors: list[dict[str, Any]] = document["errors"]
        assert errors, document
        for error in errors:
            assert set(error) <= {"code", "message", "detail"}, error
            assert isinstance(error["code"], str), error
            assert isinstance(error["message"], str), error
        return errors

    @property
    def error(self) -> dict[str, Any]:
        (error,) = self.errors
        return error


@dataclass(frozen=True)
class RegistryClient:
    """A client that opens a connection for each request.

    Attributes:
        timeout: seconds.
        source: the address to connect from. To a server, each address of ``127.0.0.0/8`` is a different
            client.
        context: for TLS; ``None`` for a server without.
        authorization: header field of every request that has none; ``None`` for no credentials.
    """

    host: str
    port: int
    timeout: float = 60
    source: str | None = None
    context: ssl.SSLContext | None = None
    authorization: str | None = None

    def connect(self) -> http.client.HTTPConnection:
        source = (self.source, 0) if self.source else None
        if self.context is not None:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=self.timeout, source_address=source, context=self.context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout, source_address=source)

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Response:
        connection = self.connect()
        always = {} if self.authorization is None else {"Authorization": self.authorization}
        try:
            connection.request(method, path, headers={**always, **(headers or {})})
            response = connection.getresponse()
            body = response.read()
            return Response(
                response.status, {name.lower(): value for name, value in response.getheaders()}, body
            )
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        return self.request("GET", path, headers)

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        return self.request("HEAD", path, headers)

    def manifest(self, name: str, reference: str = "latest") -> Response:
        return self.get(f"/v2/{name}/manifests/{quote(reference)}", {"Accept": MANIFEST})

    def blob(self, name: str, digest: str) -> Response:
        return self.get(f"/v2/{name}/blobs/{quote(digest)}")

    def digest(self, name: str, reference: str = "latest") -> str:
        """Return the digest of an image's manifest."""
        response = self.manifest(name, reference)
        assert response.status == 200, response
        return response.headers["docker-content-digest"]

    def pull(self, name: str, reference: str = "latest") -> PulledImage:
        """Pull the manifest, the config and all layers without verifying them."""
        response = self.manifest(name, reference)
        assert response.status == 200, response
        manifest = response.json()
        config = self.blob(name, manifest["config"]["digest"])
        assert config.status == 200, config
        layers = [LayerBlob(self._layer(name, layer["digest"])) for layer in manifest["layers"]]
        return PulledImage(
            manifest=response.body,
            media_type=response.headers["content-type"],
            digest=response.headers["docker-content-digest"],
            config=config.body,
            layers=tuple(layers),
        )

    def _layer(self, name: str, digest: str) -> bytes:
        response = self.blob(name, digest)
        assert response.status == 200, (digest, response.status, response.body[:500])
        return response.body


@dataclass
class InBackground:
    """A GET request in a separate thread."""

    client: RegistryClient
    path: str
    headers: Mapping[str, str] | None = None
    _answers: list[Response | OSError | http.client.HTTPException] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def start(self) -> InBackground:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self._answers.append(self.client.get(self.path, self.headers))
        except (OSError, http.client.HTTPException) as error:
            self._answers.append(error)

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def result(self, timeout: float = 60) -> Response:
        """Wait for the response; raise a failure of the connection."""
        answer = self.outcome(timeout)
        if not isinstance(answer, Response):
            raise answer
        return answer

    def outcome(self, timeout: float = 60) -> Response | OSError | http.client.HTTPException:
        """Wait for the response or the failure of the connection, and return it."""
        assert self._thread is not None
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"{self.path} was not answered within {timeout} seconds"
        (answer,) = self._answers
        return answer
