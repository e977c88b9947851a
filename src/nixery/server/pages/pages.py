"""The pages: composing an image, a build's progress, and what an image contains."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from urllib.parse import quote

from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.history import BuildReport, State
from nixery.errors import InvalidName, NixeryError
from nixery.image.name import validate_name
from nixery.image.platform import SUPPORTED, Platform
from nixery.plain_text import escaped_lines
from nixery.server.api import describe
from nixery.server.clients import host, image_path, is_encrypted
from nixery.server.errors import errors_body
from nixery.server.http import AnswerWriter, BytesResponse, Request, Response
from nixery.server.pages.templating import Templates, duration
from nixery.server.pages.treemap import MAP, treemap
from nixery.server.published_builds import PublishedBuilds
from nixery.server.published_packages import PublishedPackages, command_of, contents_of

_ROUTE = re.compile(
    r"/(?:|(?P<compose>images)|images/(?P<image>.+)|(?P<search>packages)|(?P<meta>meta-packages)|packages/(?P<package>[^/]+)"
    r"|builds/(?P<build>[0-9a-f]{1,64})(?P<log>/log)?|static/(?P<file>[a-z.]+))",
    re.DOTALL,
)

_STATIC = {
    "site.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_LOG_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}

# Builds of each list on the first page.
_LISTED = 12

# Results of a search without a script.
_FOUND = 50

_EXAMPLE = "shell/git"

# Headings of pages about attributes, by their kind.
_KINDS = {"list": "List of packages", "definition": "Image definition", "meta-package": "Meta-package"}

# Those whose images are of use without a shell beside them.
_COMPLETE = frozenset({"definition", "meta-package"})

# Stages of a build in order, with their titles.
_STAGES = {
    "queued": "Wait",
    "evaluate": "Evaluate",
    "realise": "Fetch and build",
    "group": "Group",
    "pack": "Pack",
    "store": "Store",
}


@dataclass(frozen=True, slots=True)
class PullLine:
    """A command that pulls an image: the program, and the line to copy."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class ShownStage:
    """A stage of a build.

    Attributes:
        kind: a class of the style sheet.
        share: of the time of the whole build, in per cent.
        start: where the stage begins on a bar of the whole build, in thousandths.
        width: of the stage on that bar.
    """

    name: str
    title: str
    kind: str
    took: str
    hidden: bool
    share: str = ""
    start: int = 0
    width: int = 0


class Pages:
    """Answers requests for pages.

    Args:
        builds: reports of builds.
        packages: of the package set.
        descriptions: of images.
        platforms: of a name without a platform.
        writer: of answers.
    """

    def __init__(
        self,
        builds: PublishedBuilds,
        packages: PublishedPackages,
        descriptions: ImageDescriptions,
        platforms: Sequence[Platform],
        writer: AnswerWriter,
    ) -> None:
        self._writer = writer
        self._builds = builds
        self._packages = packages
        self._descriptions = descriptions
        self._platforms = platforms
        self._templates = Templates()
        directory = files("nixery.server.pages") / "static"
        self._static = {name: (directory / name).read_bytes() for name in _STATIC}

    async def answer(self, request: Request) -> Response:
        """Answer a request; never raises for anything a client can do."""
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return self._not_found(request)
        if request.method not in ("GET", "HEAD"):
            message = "method not allowed: use GET or HEAD"
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        try:
            return await self._page(request, match)
        except NixeryError as error:
            return self._templates.error(error)

    async def _page(self, request: Request, match: re.Match[str]) -> Response:  # noqa: PLR0911 -- a page each
        match match.groupdict():
            case {"file": str(name)}:
                return self._file(name)
            case {"build": str(build), "log": str()}:
                return await self._log(build)
            case {"build": str(build)}:
                report = await self._builds.find(build)
                async with self._builds.turn():
                    return self._build(report)
            case {"image": str(image)}:
                return await self._image(request, image)
            case {"search": str()}:
                return await self._search(request)
            case {"meta": str()}:
                return await self._meta_packages(request)
            case {"package": str(name)}:
                return await self._package(request, name)
            case {"compose": str()}:
                return _composed(request)
            case _:
                await self._builds.refresh()
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
            lines=_pull_lines(request, f"{_EXAMPLE}:latest"),
            recent=others,
            failed=failed,
            public=self._builds.public,
        )

    def _build(self, report: BuildReport | None) -> Response:
        if report is None:
            return self._error(404, "No such build", "The server keeps only recent builds.")
        now = time.time()
        image, tag = image_path(report.name, report.platform, self._platforms), report.tag or "latest"
        return self._templates.response(
            "build.html",
            build=report,
            now=now,
            stages=_shown_stages(report, now),
            public=self._builds.public,
            image=image,
            tag=tag,
            link=f"/images/{quote(image)}" + ("" if tag == "latest" else f":{quote(tag, safe='')}"),
            nothing=_nothing_written(report),
        )

    async def _log(self, build: str) -> Response:
        if not self._builds.public:
            return errors_body(403, "DENIED", "builds are not public on this server (NIXERY_PUBLIC_BUILDS=0)")
        report = await self._builds.find(build)
        if report is None:
            return self._build(None)
        async with self._builds.turn():
            lines = [f"[{report.dropped} earlier lines are not kept]"] if report.dropped else []
            lines += [escaped_lines(line.text) for line in report.log]
            content = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        return BytesResponse(200, content, _LOG_HEADERS)

    async def _image(self, request: Request, image: str) -> Response:
        named = await describe(self._descriptions, image, self._platforms, compare=self._builds.public)

        def page() -> Response:
            return self._templates.response(
                "image.html",
                name=named.name,
                tag=named.tag,
                pin=named.pin,
                lines=_pull_lines(request, f"{named.name}:{named.tag}"),
                exact_tag=named.exact_tag if named.exact_tag != named.tag else None,
                images=[(description, treemap(description)) for description in named.found],
                missing=[str(one.platform) for one in named.missing],
                shared=[
                    (shared, image_path(shared.build.name, shared.build.platform, self._platforms))
                    for shared in (named.found[0].shared if named.found else ())
                ],
                view=MAP,
            )

        return await self._writer.write(page)

    async def _search(self, request: Request) -> Response:
        found = await self._packages.find(request, _FOUND if request.query.get("q") else 0)
        if found is None:
            return self._listing_in_progress()
        page = partial(
            self._templates.response,
            "packages.html",
            text=request.query.get("q", ""),
            tag=request.query.get("tag", "latest"),
            found=found,
        )
        return await self._writer.write(page)

    async def _meta_packages(self, request: Request) -> Response:
        found = await self._packages.meta_packages(request)
        if found is None:
            return self._listing_in_progress()
        page = partial(
            self._templates.response,
            "meta-packages.html",
            tag=request.query.get("tag", "latest"),
            progress=found.progress,
            found=[
                (name, attribute, contents_of(attribute), " ".join(command_of(attribute)))
                for name, attribute in found.found
            ],
        )
        return await self._writer.write(page)

    async def _package(self, request: Request, name: str) -> Response:
        details = await self._packages.describe(request, name)
        if details is None:
            return self._listing_in_progress()
        tag = request.query.get("tag", "latest")
        attribute, package = details.attribute, details.package
        # A container of a package alone has no shell to try it with.
        image = (
            package.name if attribute is not None and attribute.kind in _COMPLETE else f"shell/{package.name}"
        )
        page = partial(
            self._templates.response,
            "package.html",
            package=package,
            attribute=attribute,
            details=details,
            kind=_KINDS.get(attribute.kind, "Package") if attribute is not None else "Package",
            available=details.is_available,
            tag=tag,
            image=f"{image}:{tag}",
            lines=_pull_lines(request, f"{image}:{tag}"),
        )
        return await self._writer.write(page)

    def _listing_in_progress(self) -> Response:
        page = self._error(
            503,
            "Listing the packages",
            "The server lists the package set. Reload this page in a few seconds.",
        )
        return replace(page, headers={**page.headers, "Retry-After": "5"})

    def _file(self, name: str) -> Response:
        if name not in self._static:
            return self._error(404, "Not found", "There is no such file.")
        headers = {"Content-Type": _STATIC[name], "Cache-Control": "no-cache"}
        return BytesResponse(200, self._static[name], headers)

    def _not_found(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return self._error(
                404, "Not found", "This is a container registry. Pull an image, or compose one."
            )
        message = "this is a container registry: pull an image, for example HOST/shell/git"
        return errors_body(404, "UNSUPPORTED", message)

    def _error(self, status: int, title: str, message: str) -> BytesResponse:
        return self._templates.response("error.html", status, title=title, message=message)


def _composed(request: Request) -> Response:
    """Redirect the form, submitted without a script, to the page of the composed image.

    Raises:
        InvalidName: the form names no package, or an invalid one.
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


def _pull_lines(request: Request, image: str) -> list[PullLine]:
    reference = f"{host(request)}/{image}"
    # Podman refuses an unencrypted registry unless told otherwise.
    plain = "" if is_encrypted(request) else "--tls-verify=false "
    return [
        PullLine("Docker", f"docker run --rm -it {reference}"),
        PullLine("Podman", f"podman run --rm -it {plain}{reference}"),
        PullLine("Kubernetes", f"kubectl run -it --rm --restart=Never --image={reference} nixery"),
    ]


def _nothing_written(report: BuildReport) -> str:
    """Return what an empty log means. ``site.js`` has the same texts for a build that goes on."""
    stage = report.stages[-1].name if report.stages else "queued"
    match stage:
        case _ if report.is_over or stage in {"group", "pack", "store"}:
            built = "The builders wrote nothing." if report.built else "No builder had to run."
            return built if report.state is not State.FAILED else "No builder wrote anything."
        case "queued":
            return "The build waits for its turn."
        case "evaluate":
            return "Nix is evaluating the packages. Builders start after that."
        case _ if report.builders:
            return f"{report.builders[-1].name} has written nothing so far."
        case _ if report.to_fetch_paths:
            return "Nix is fetching packages. Only builders write a log."
        case _:
            return "No builder is running yet."


def _shown_stages(report: BuildReport, now: float) -> list[ShownStage]:
    """Return all stages of a build, future ones too."""
    entered = {stage.name: stage for stage in report.stages}
    took = {name: max(0.0, (stage.ended or now) - stage.started) for name, stage in entered.items()}
    total = sum(took.values())

    def part(seconds: float) -> int:
        return round(1000 * seconds / total) if total else 0

    shown = []
    start = 0.0
    for name, title in _STAGES.items():
        stage = entered.get(name)
        if stage is None:
            # Most builds do not wait.
            shown.append(ShownStage(name, title, "future", "", hidden=name == "queued"))
            continue
        is_culprit = report.state is State.FAILED and stage is report.stages[-1]
        kind = "current" if stage.ended is None else "failed" if is_culprit else "past"
        share = f"{part(took[name]) / 10:.0f} %" if report.is_over else ""
        place = part(start), part(took[name])
        shown.append(ShownStage(name, title, kind, duration(took[name]), False, share, *place))
        start += took[name]
    return shown
