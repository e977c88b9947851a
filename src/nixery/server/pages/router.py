"""From a path to a page."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import quote

from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.history import State
from nixery.builds.packages import PackageIndex
from nixery.errors import InvalidName, NixeryError
from nixery.image.name import validate_name
from nixery.image.platform import SUPPORTED, Platform
from nixery.server.clients import host, image_path, is_encrypted
from nixery.server.errors import errors_body
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.pages.image_page import ImagePage
from nixery.server.pages.pulling import pull_lines
from nixery.server.pages.stages import shown_stages
from nixery.server.pages.templating import Templates
from nixery.server.published_builds import PublishedBuilds

_ROUTE = re.compile(
    r"/(?:|(?P<compose>images)|images/(?P<image>.+)|builds/(?P<build>[0-9a-f]{1,64})|static/(?P<file>[a-z.]+))",
    re.DOTALL,
)

_STATIC = {
    "site.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

# Builds of the list on the first page.
_LISTED = 12

_EXAMPLE = "shell/git"


class Pages:
    """All pages.

    Args:
        index: of packages.
        builds: that are known.
        descriptions: of images.
        platforms: of a name that says none.
    """

    def __init__(
        self,
        index: PackageIndex,
        builds: PublishedBuilds,
        descriptions: ImageDescriptions,
        platforms: Sequence[Platform],
    ) -> None:
        self._index = index
        self._builds = builds
        self._platforms = platforms
        self._templates = Templates()
        self._image = ImagePage(descriptions, self._templates, platforms, compare=builds.public)
        directory = files("nixery.server.pages") / "static"
        self._static = {name: (directory / name).read_bytes() for name in _STATIC}

    async def answer(self, request: Request) -> Response:
        """Answer a request; raises nothing for anything a client can do."""
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return self._nothing(request)
        if request.method not in ("GET", "HEAD"):
            return errors_body(
                405, "UNSUPPORTED", "pages are there to be read", headers={"Allow": "GET, HEAD"}
            )
        try:
            return await self._read(request, match)
        except NixeryError as error:
            return self._templates.error(error)

    async def _read(self, request: Request, match: re.Match[str]) -> Response:
        match match.groupdict():
            case {"file": str(name)}:
                return self._file(name)
            case {"build": str(build)}:
                async with self._builds.turn():
                    return self._build(build)
            case {"image": str(image)}:
                return await self._image.get(request, image)
            case {"compose": str()}:
                return _composed(request)
            case _:
                async with self._builds.turn():
                    return self._home(request)

    def _home(self, request: Request) -> Response:
        reports = self._builds.recent()
        failed = [report for report in reports if report.state is State.FAILED][:_LISTED]
        others = [report for report in reports if report.state is not State.FAILED][:_LISTED]
        return self._templates.response(
            "home.html",
            host=host(request),
            encrypted=is_encrypted(request),
            platforms=[platform.architecture.name for platform in SUPPORTED],
            default=", ".join(map(str, self._platforms)),
            lines=pull_lines(request, f"{_EXAMPLE}:latest"),
            example=_EXAMPLE,
            recent=others,
            failed=failed,
            public=self._builds.public,
            link=self._link,
        )

    def _build(self, build: str) -> Response:
        report = self._builds.get(build)
        if report is None:
            message = "There is no such build, or it was too long ago."
            return self._templates.response("error.html", 404, title="No such build", message=message)
        return self._templates.response(
            "build.html",
            build=report,
            now=time.time(),
            stages=shown_stages(report),
            public=self._builds.public,
            link=self._link(report.name, report.platform),
        )

    def _link(self, name: str, platform: str) -> str:
        return "/images/" + image_path(name, platform, self._platforms)

    def _file(self, name: str) -> Response:
        if name not in self._static:
            return self._templates.response(
                "error.html", 404, title="Not found", message="There is no such file."
            )
        headers = {
            "Content-Type": _STATIC[name],
            "Cache-Control": "no-cache",
        }
        return BytesResponse(200, self._static[name], headers)

    def _nothing(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            message = "This is a container registry. Pull an image, or go to the first page to compose one."
            return self._templates.response("error.html", 404, title="Not found", message=message)
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)


def _composed(request: Request) -> Response:
    """Send the reader of the form, who has no script, to the page of what he composed.

    Raises:
        InvalidName: it is no name.
    """
    query = request.query
    packages = re.split(r"[\s,/]+", query.get("packages", "").strip().lower())
    parts = [query.get("platform", ""), "shell" if "shell" in query else "", *packages]
    name = "/".join(part for part in parts if part)
    if not name:
        raise InvalidName(name, "it names no package")
    validate_name(name)
    tag = query.get("tag", "").strip() or "latest"
    return BytesResponse(303, b"", {"Location": f"/images/{quote(name)}:{quote(tag, safe='')}"})
