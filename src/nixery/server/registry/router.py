"""From a path to a handler. Repository names have slashes, so the end of a path decides."""

from __future__ import annotations

import re

from nixery.errors import NixeryError
from nixery.server.clients import base_url
from nixery.server.errors import error_response, errors_body
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests

_RESOURCE = re.compile(
    r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags(?=/list/?\Z))/(?P<reference>[^/]+)/?",
    re.DOTALL,
)

_API_VERSION = {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}


class Registry:
    """The distribution API: read-only, since the contents of an image are its name.

    Args:
        log_links: whether the message about a failed build tells where its log is.
    """

    def __init__(
        self, manifests: Manifests, blobs: Blobs, discovery: Discovery, *, log_links: bool = False
    ) -> None:
        self._log_links = log_links
        self._manifests = manifests
        self._blobs = blobs
        self._discovery = discovery

    async def answer(self, request: Request) -> Response:
        """Answer a request for a path below ``/v2``; never raises for anything a client can do."""
        if request.method not in ("GET", "HEAD"):
            message = (
                "this registry is read-only: an image is what its name says, so there is nothing to push"
            )
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        try:
            return await self._route(request)
        except NixeryError as error:
            return error_response(error, base_url(request) if self._log_links else None)

    async def _route(self, request: Request) -> Response:
        match = _RESOURCE.fullmatch(request.path)
        if match is not None:
            return await self._resource(request, match["kind"], match["name"], match["reference"])
        match request.path.rstrip("/"):
            case "/v2":
                return BytesResponse(200, b"{}", _API_VERSION)
            case "/v2/_catalog":
                return await self._discovery.catalog(request)
            case _:
                return errors_body(404, "UNSUPPORTED", f"there is nothing at {request.path}")

    async def _resource(self, request: Request, kind: str, name: str, reference: str) -> Response:
        match kind:
            case "manifests":
                return await self._manifests.get(request, name, reference)
            case "blobs":
                return await self._blobs.get(request, name, reference)
            case "referrers":
                return await self._discovery.referrers(request, name, reference)
            case _:
                return await self._discovery.tags(request, name)
