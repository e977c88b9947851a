"""From a path to a handler. Repository names have slashes, so the end of a path decides."""

from __future__ import annotations

import re

from nixery.errors import NixeryError
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.errors import error_response, errors_body
from nixery.server.registry.manifests import Manifests
from nixery.server.responses import BytesResponse, Response

_RESOURCE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)/?", re.DOTALL)

_API_VERSION = {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}


class Registry:
    """The distribution API: read-only, since the contents of an image are its name."""

    def __init__(self, manifests: Manifests, blobs: Blobs) -> None:
        self._manifests = manifests
        self._blobs = blobs

    async def answer(self, method: str, path: str) -> Response:
        """Answer a request for a path below ``/v2``; never raises for anything a client can do."""
        if method not in ("GET", "HEAD"):
            message = (
                "this registry is read-only: an image is what its name says, so there is nothing to push"
            )
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        if path.rstrip("/") == "/v2":
            return BytesResponse(200, b"{}", _API_VERSION)
        match = _RESOURCE.fullmatch(path)
        if match is None:
            return errors_body(404, "UNSUPPORTED", f"there is nothing at {path}")
        try:
            if match["kind"] == "manifests":
                return await self._manifests.get(match["name"], match["reference"])
            return await self._blobs.get(match["name"], match["reference"])
        except NixeryError as error:
            return error_response(error)
