"""The distribution API under ``/v2/``. Repository names have slashes, so the end of a path selects the handler."""

from __future__ import annotations

import re

from nixery.access.audit import AuditLog
from nixery.access.identity import Right
from nixery.access.policy import current_access
from nixery.errors import NixeryError
from nixery.server.clients import base_url
from nixery.server.errors import error_response, errors_body
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions

_RESOURCE = re.compile(
    r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags(?=/list/?\Z))/(?P<reference>[^/]+)/?",
    re.DOTALL,
)

_API_VERSION = {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}


class Registry:
    """Routes requests; read-only, since an image's name defines its contents.

    Args:
        permissions: decides who may pull what.
        log_links: whether the message about a failed build links to its log.
        audit: records pulls; ``None`` for no record.
    """

    def __init__(
        self,
        manifests: Manifests,
        blobs: Blobs,
        discovery: Discovery,
        permissions: Permissions,
        *,
        log_links: bool = False,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit
        self._permissions = permissions
        self._manifests = manifests
        self._blobs = blobs
        self._discovery = discovery
        self._log_links = log_links

    async def answer(self, request: Request) -> Response:  # noqa: PLR0911 -- a route each
        """Answer a request for a path below ``/v2``; never raises for anything a client can do."""
        if request.method not in ("GET", "HEAD"):
            message = (
                "this registry is read-only, since an image's name defines its contents: use GET or HEAD"
            )
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        match = _RESOURCE.fullmatch(request.path)
        try:
            if match is not None and request.repositories is not None:
                self._permissions.require_name(request, match["name"])
            match match.groups() if match else request.path.rstrip("/"):
                case name, "manifests", reference:
                    answer = await self._manifests.get(request, name, reference)
                    self._record_pull(name, reference, answer)
                    return answer
                case name, "blobs", digest:
                    return await self._blobs.get(request, name, digest)
                case name, "referrers", digest:
                    return await self._discovery.referrers(request, name, digest)
                case name, _, _:
                    return await self._discovery.tags(request, name)
                case "/v2":
                    return BytesResponse(200, b"{}", _API_VERSION)
                case "/v2/_catalog":
                    return await self._discovery.catalog(request)
                case _:
                    return errors_body(404, "UNSUPPORTED", f"no such route: {request.path}")
        except NixeryError as error:
            access = current_access()
            has_links = self._log_links and access.allows_anything(Right.SEE_BUILDS)
            return error_response(access.without_hidden(error), base_url(request) if has_links else None)

    def _record_pull(self, name: str, reference: str, answer: Response) -> None:
        digest = answer.headers.get("Docker-Content-Digest")
        if self._audit is not None and digest is not None and ":" not in reference:
            self._audit.pulled(name, reference, digest)
