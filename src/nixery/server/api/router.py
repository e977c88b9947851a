"""From a path below ``/api/v1`` to a handler."""

from __future__ import annotations

import re

from nixery.errors import NixeryError
from nixery.server.api.builds import Builds
from nixery.server.api.images import ImageDocuments
from nixery.server.api.packages import Packages
from nixery.server.errors import error_response, errors_body
from nixery.server.http import Request, Response

_ROUTE = re.compile(
    r"/api/v1/(?:(?P<list>packages|builds)"
    r"|packages/(?P<package>[^/]+)"
    r"|builds/(?P<build>[0-9a-f]{1,64})(?P<events>/events)?"
    r"|images/(?P<image>.+))",
    re.DOTALL,
)


class Api:
    """The API of the pages and of programs."""

    def __init__(self, packages: Packages, builds: Builds, images: ImageDocuments) -> None:
        self._packages = packages
        self._builds = builds
        self._images = images

    async def answer(self, request: Request) -> Response:
        """Answer a request; raises nothing for anything a client can do."""
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return errors_body(404, "UNSUPPORTED", f"there is nothing at {request.path}")
        begins = request.method == "POST" and match["list"] == "builds"
        if request.method not in ("GET", "HEAD") and not begins:
            allowed = "GET, HEAD, POST" if match["list"] == "builds" else "GET, HEAD"
            return errors_body(405, "UNSUPPORTED", f"there is only {allowed}", headers={"Allow": allowed})
        try:
            return await (self._builds.begin(request) if begins else self._read(request, match))
        except NixeryError as error:
            return error_response(error)

    async def _read(self, request: Request, match: re.Match[str]) -> Response:
        match match.groupdict():
            case {"list": "packages"}:
                return await self._packages.search(request)
            case {"list": "builds"}:
                return await self._builds.recent(request)
            case {"package": str(name)}:
                return await self._packages.get(request, name)
            case {"build": str(build), "events": str()}:
                return await self._builds.events(request, build)
            case {"build": str(build)}:
                return await self._builds.get(build)
            case _:
                return await self._images.get(match["image"])
