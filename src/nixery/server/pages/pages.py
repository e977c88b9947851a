"""The pages: composing an image, a build's progress, and what an image contains."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from urllib.parse import quote, unquote, urlencode

from nixery.access.policy import current_access
from nixery.builds.descriptions import DescribedLayer, ImageDescription, ImageDescriptions
from nixery.builds.failures import FailureKind
from nixery.builds.history import BuildReport, State
from nixery.builds.image_closure import ClosurePath, ImageClosure
from nixery.builds.pins import DEFAULT_TAG
from nixery.errors import InvalidName, NixeryError, PackageUnknown
from nixery.image.meta_packages import SHELL
from nixery.image.name import ALWAYS_INCLUDED, PREFIXES, Tag, canonical_name, parse_reference, validate_name
from nixery.image.platform import SUPPORTED, Platform
from nixery.plain_text import escaped_lines
from nixery.server.api import NamedImage, describe, visible
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.clients import host, image_path, is_encrypted, is_local
from nixery.server.compression import compressed
from nixery.server.errors import errors_body, heading
from nixery.server.http import AnswerWriter, BytesResponse, ErrorResponse, Request, Response
from nixery.server.pages.api_reference import ApiReference, api_reference
from nixery.server.pages.static_files import StaticFiles
from nixery.server.pages.templating import Templates, duration
from nixery.server.pages.treemap import NARROW, WIDE, Tile, treemap
from nixery.server.published_builds import PublishedBuilds
from nixery.server.published_images import PublishedImages
from nixery.server.published_packages import (
    CheckedName,
    PackageSetSummary,
    PublishedPackages,
    command_of,
    contents_of,
)

_ROUTE = re.compile(
    r"/(?:|(?P<page>help|docs|openapi\.json|builds)|(?P<compose>images)|images/(?P<image>.+)|(?P<search>packages)|(?P<meta>meta-packages)|packages/(?P<package>[^/]+)"
    r"|builds/(?P<build>[0-9a-f]{1,64})(?P<log>/log)?|static/(?P<file>[a-z0-9.]+))",
    re.DOTALL,
)

# Builds of each list on the first page, and of a page of all.
_LISTED, _ON_PAGE = 6, 50

# Characters of a text that builds are searched for; no name is longer.
_LONGEST_TEXT = 255

_PAGE_NUMBER = re.compile(r"[1-9]\d{0,3}", re.ASCII)

# The filter of builds by state.
_STATE_TITLES = {"": "any", "done": "built", "failed": "failed", "running": "in progress"}
_STATES = {
    "done": frozenset({State.DONE, State.FOUND}),
    "failed": frozenset({State.FAILED}),
    "running": frozenset({State.WAITING, State.RUNNING}),
}

_LOG_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}

# Failures in the words of people who read a list.
_FAILURES = {
    FailureKind.UNKNOWN_PACKAGE: "no such package",
    FailureKind.UNAVAILABLE: "package not available",
    FailureKind.EVALUATION: "package set does not evaluate",
    FailureKind.BUILDER: "build error",
    FailureKind.TIMEOUT: "took too long",
    FailureKind.TOO_LARGE: "too large",
    FailureKind.CANCELLED: "cancelled",
    FailureKind.SHUTDOWN: "server was stopped",
    FailureKind.BUSY: "server was busy",
    FailureKind.SOURCE: "package source out of reach",
    FailureKind.NO_SPACE: "out of space",
    FailureKind.OTHER: "other error",
}

# Those that the server repeats for a while.
_REMEMBERED = frozenset(
    {
        FailureKind.UNKNOWN_PACKAGE,
        FailureKind.UNAVAILABLE,
        FailureKind.EVALUATION,
        FailureKind.BUILDER,
        FailureKind.TIMEOUT,
        FailureKind.TOO_LARGE,
    }
)

# Results of a search without a script.
_FOUND = 50

# Store paths with a link to their explanation: of an image in its table of layers, and of one layer.
_LINKED_PATHS, _LINKED_OF_LAYER = 2000, 200

_EXAMPLE = "shell/git"

# Headings of errors that are about no image, by status.
_TITLES = {
    400: "Not a valid request",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    408: "The request took too long",
    414: "This address is too long",
}

# First components of the server's own paths.
_TAKEN = frozenset(
    {
        "v2",
        "api",
        "static",
        "builds",
        "images",
        "packages",
        "meta-packages",
        "docs",
        "help",
        "openapi.json",
        "login",
        "logout",
    }
)

# Platforms as clients write them, by their names in Nix.
_PLATFORMS = {platform.nix_system: str(platform) for platform in SUPPORTED}

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


@dataclass(frozen=True, slots=True)
class ShownLayer:
    """A layer in the table of an image.

    Attributes:
        number: from 1, in the order of the image.
        paths: the largest of its store paths, if they are known.
        more: number of the others.
    """

    number: int
    layer: DescribedLayer
    paths: Sequence[ClosurePath]
    more: int


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image for one platform.

    Attributes:
        closure: its store paths; ``None`` if they are unknown.
        alone: bytes that only one package needs, by component, name and version.
        maps: of its layers, for a wide and a narrow screen.
        layers: the largest first.
        licensed: whether the licence of a package is known.
        shell_alone: bytes that only the shell and its tools need; 0 if that is unknown.
    """

    image: ImageDescription
    closure: ImageClosure | None
    alone: Mapping[tuple[str, str, str], int]
    maps: Sequence[Sequence[Tile]]
    layers: Sequence[ShownLayer]
    licensed: bool
    shell_alone: int


# A name for which an image cannot be built; near names, with links to their images.
_Problem = tuple[CheckedName, Sequence[tuple[str, str]]]


class Pages:
    """Answers requests for pages.

    Args:
        builds: reports of builds.
        cancellation: decides who may cancel a build.
        packages: of the package set.
        descriptions: of images.
        images: names of stored images.
        platforms: of a name without a platform.
        writer: of answers.
        failure_time_to_live: seconds for which the server repeats a failure without another build.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- everything that pages show
        self,
        builds: PublishedBuilds,
        cancellation: BuildCancellation,
        packages: PublishedPackages,
        descriptions: ImageDescriptions,
        images: PublishedImages,
        platforms: Sequence[Platform],
        writer: AnswerWriter,
        failure_time_to_live: float = 0,
    ) -> None:
        self._writer = writer
        self._remembered = failure_time_to_live
        self._builds = builds
        self._cancellation = cancellation
        self._packages = packages
        self._descriptions = descriptions
        self._platforms = platforms
        self._static = StaticFiles()
        self._images = images
        self._templates = Templates(self._static)

    async def answer(self, request: Request) -> Response:
        """Answer a request; never raises for anything a client can do."""
        return await compressed(request, await self._answer(request))

    def error_page(self, request: Request, error: ErrorResponse) -> BytesResponse:
        """Answer with the page of an error, for a person, in place of JSON."""
        title = error.title or _TITLES.get(error.status, "Something went wrong")
        page = self._templates.response(
            "error.html", error.status, title=title, message=error.message, image=_image_meant(request)
        )
        kept = {name: value for name, value in error.headers.items() if name != "Content-Type"}
        return replace(page, headers={**page.headers, "Vary": "Accept", **kept})

    @cached_property
    def _reference(self) -> ApiReference:
        # At the first request: commands serve no pages.
        return api_reference()

    @cached_property
    def _reference_page(self) -> Response:
        return self._templates.response("docs.html", reference=self._reference)

    def _docs(self) -> Response:
        # With rules, each page says who is logged in.
        if current_access().is_restricted:
            return self._templates.response("docs.html", reference=self._reference)
        return self._reference_page

    async def _answer(self, request: Request) -> Response:
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            message = "this is a container registry: pull an image, for example HOST/shell/git"
            return errors_body(404, "UNSUPPORTED", message)
        if request.method not in ("GET", "HEAD"):
            message = "method not allowed: use GET or HEAD"
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        try:
            return await self._page(request, match)
        except PackageUnknown as error:
            return self._templates.response(
                "error.html",
                404,
                title=heading(error),
                message=f"The package set has no package {error.name}.",
                near=error.near_names,
                search=error.name,
                tag=self._tag(request),
            )
        except NixeryError as error:
            return self._templates.error(current_access().without_hidden(error))

    async def _page(self, request: Request, match: re.Match[str]) -> Response:  # noqa: PLR0911 -- a page each
        match match.groupdict():
            case {"file": str(name)}:
                return self._static.answer(request, name) or self._error(
                    404, "Not found", "There is no such file."
                )
            case {"build": str(build), "log": str()}:
                return await self._log(request, build)
            case {"build": str(build)}:
                report = await self._builds.find(build)
                async with self._builds.turn():
                    return self._build(request, report)
            case {"image": str(image)}:
                return await self._image(request, image)
            case {"search": str()}:
                return await self._search(request)
            case {"meta": str()}:
                return await self._meta_packages(request)
            case {"package": str(name)}:
                return await self._package(request, name)
            case {"compose": str()}:
                return _composed(request) if "packages" in request.query else await self._images_page(request)
            case {"page": str(page)}:
                return await self._fixed(request, page)
            case _:
                found = await self._packages.summary()
                await self._builds.refresh()
                async with self._builds.turn():
                    return self._home(request, found)

    async def _fixed(self, request: Request, page: str) -> Response:
        match page:
            case "builds":
                await self._builds.refresh()
                async with self._builds.turn():
                    return self._builds_page(request)
            case "openapi.json":
                headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
                return BytesResponse(200, self._reference.content, headers)
            case "docs":
                return self._docs()
            case _:
                return self._templates.response(
                    "help.html",
                    host=host(request),
                    encrypted=is_encrypted(request),
                    lines=_pull_lines(request, f"{_EXAMPLE}:latest"),
                )

    def _builds_page(self, request: Request) -> Response:
        text = request.query.get("q", "").strip().lower()[:_LONGEST_TEXT]
        state = request.query.get("state", "")
        why = request.query.get("why", "")
        states = _STATES.get(state, frozenset(State))
        found = [
            report
            for report in self._builds.recent()
            if report.state in states
            and (not text or text in f"{report.platform}/{report.name}")
            and (not why or report.failure == why)
        ]
        wanted = request.query.get("page", "1")
        page = int(wanted) if _PAGE_NUMBER.fullmatch(wanted) else 1
        last = max(1, -(-len(found) // _ON_PAGE))
        page = min(page, last)

        def link(number: int) -> str | None:
            if not 1 <= number <= last:
                return None
            given = {"q": text, "state": state, "why": why, "page": str(number) if number > 1 else ""}
            return "/builds?" + urlencode({name: value for name, value in given.items() if value})

        return self._templates.response(
            "builds.html",
            text=text,
            state=state,
            states=_STATE_TITLES,
            why=why,
            kinds=_FAILURES,
            reports=found[(page - 1) * _ON_PAGE : page * _ON_PAGE],
            first=(page - 1) * _ON_PAGE + 1,
            total=len(found),
            filtered=bool(text or state or why),
            previous=link(page - 1),
            next=link(page + 1),
            now=time.time(),
            public=self._builds.shows_names,
        )

    async def _images_page(self, request: Request) -> Response:
        text = request.query.get("q", "").strip().lower().removeprefix("/")
        found = await self._images.page(text, request.query.get("after", ""))
        async with self._builds.turn():
            built: dict[str, BuildReport] = {}
            sizes: dict[str, int] = {}
            for report in self._builds.recent() if found.names else ():
                if report.manifest is not None:
                    # A build that found the image stored has packed no layer.
                    if report.layers is not None:
                        sizes[report.manifest] = report.packed_bytes + report.reused_bytes
                    name = unquote(image_path(report.name, report.platform, self._platforms))
                    with suppress(InvalidName):
                        built.setdefault(canonical_name(name), report)
            return self._templates.response(
                "images.html",
                text=text,
                host=host(request),
                found=[(name, built.get(name)) for name in found.names],
                sizes=sizes,
                next=found.after and "/images?" + urlencode({"q": text, "after": found.after}),
                now=time.time(),
                public=self._images.public,
            )

    def _home(self, request: Request, packages: PackageSetSummary | None) -> Response:
        reports = self._builds.recent()
        failed = [report for report in reports if report.state is State.FAILED][:_LISTED]
        others = [report for report in reports if report.state is not State.FAILED][:_LISTED]
        return self._templates.response(
            "home.html",
            host=host(request),
            local=request.public_url is None and is_local(host(request)),
            reference=f"{host(request)}/{_EXAMPLE}:latest",
            set=packages,
            now=time.time(),
            kinds=_FAILURES,
            platforms=[platform.architecture.name for platform in SUPPORTED],
            composed=Composition.of(request.query),
            default=", ".join(map(str, self._platforms)),
            lines=_pull_lines(request, f"{_EXAMPLE}:latest"),
            recent=others,
            failed=failed,
            public=self._builds.shows_names,
        )

    def _build(self, request: Request, report: BuildReport | None) -> Response:
        if report is None:
            return self._error(404, "No such build", "The server keeps only recent builds.")
        now = time.time()
        image, tag = image_path(report.name, report.platform, self._platforms), report.tag or "latest"
        return self._templates.response(
            "build.html",
            build=report,
            now=now,
            stages=_shown_stages(report, now),
            public=self._builds.shows_names,
            image=image,
            tag=tag,
            link=f"/images/{quote(image)}" + ("" if tag == "latest" else f":{quote(tag, safe='')}"),
            compose=Composition.of_image(image, tag).address,
            nothing=_nothing_written(report),
            may_cancel=self._cancellation.allows(request, report),
            # Of another server of the storage, which remembers its own failures only.
            remembered=self._remembered if report.reported is None else 0,
            repeats=report.failure in _REMEMBERED,
        )

    async def _log(self, request: Request, build: str) -> Response:
        if not self._builds.shows_names:
            return errors_body(403, "DENIED", "builds are not public on this server (NIXERY_PUBLIC_BUILDS=0)")
        report = await self._builds.find(build)
        if report is None:
            return self._build(request, None)
        async with self._builds.turn():
            lines = [f"[{report.dropped} earlier lines are not kept]"] if report.dropped else []
            lines += [escaped_lines(line.text) for line in report.log]
            content = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        return BytesResponse(200, content, _LOG_HEADERS)

    async def _image(self, request: Request, image: str) -> Response:
        named = await describe(self._descriptions, image, self._platforms, compare=self._builds.shows_names)
        problems = await self._problems(named)
        async with self._descriptions.closures(named.found) as closures:
            if (why := request.query.get("why")) is not None:
                return await self._why(named, why, closures)
            return await self._image_page(request, named, problems, closures)

    async def _image_page(
        self,
        request: Request,
        named: NamedImage,
        problems: Sequence[_Problem],
        closures: Sequence[ImageClosure | None],
    ) -> Response:
        # The digest of several platforms is that of their index, which the description does not have.
        digest = named.found[0].digest if len(named.found) == 1 and not named.missing else None

        def page() -> Response:
            return self._templates.response(
                "image.html",
                404 if any(problem.exists is False for problem, _ in problems) else 200,
                problems=problems,
                compose=Composition.of_image(named.name, named.tag).address,
                prefixes=PREFIXES,
                # Prefixes first, the rest in its order.
                sorted="/".join(sorted(named.name.split("/"), key=lambda part: part not in PREFIXES)),
                shell=SHELL,
                always=frozenset(ALWAYS_INCLUDED).difference(named.name.split("/")),
                ignored_tag=named.ignored_tag,
                first=next((part for part in named.name.split("/") if part not in PREFIXES), ""),
                failed=self._last_failure(named) if named.missing and not problems else None,
                now=time.time(),
                name=named.name,
                tag=named.tag,
                pin=named.pin,
                lines=_pull_lines(request, f"{named.name}:{named.tag}", digest),
                exact_tag=named.exact_tag if named.exact_tag != named.tag else None,
                images=[
                    _shown_image(description, closure)
                    for description, closure in zip(named.found, closures, strict=True)
                ],
                reference=f"{host(request)}/{named.name}:{named.tag}",
                missing=[str(one.platform) for one in named.missing],
                shared=[
                    (shared, image_path(shared.build.name, shared.build.platform, self._platforms))
                    for shared in visible(named.found[0].shared if named.found else ())
                ],
            )

        return await self._writer.write(page)

    def _last_failure(self, named: NamedImage) -> BuildReport | None:
        """Return the report of the last build of an image that is not stored, if that failed."""
        wanted = {(request.name, str(request.platform)) for request in named.missing}
        reports = self._builds.recent()
        last = next((report for report in reports if (report.name, report.platform) in wanted), None)
        return last if last is not None and last.state is State.FAILED else None

    async def _why(self, named: NamedImage, why: str, closures: Sequence[ImageClosure | None]) -> Response:
        """Explain why an image has a store path."""

        def page() -> Response:
            for nth, (description, closure) in enumerate(zip(named.found, closures, strict=True), 1):
                explanation = closure.explain(why) if closure is not None else None
                if explanation is not None:
                    return self._templates.response(
                        "why.html",
                        name=named.name,
                        tag=named.tag,
                        image=description,
                        nth=nth,
                        shell=SHELL,
                        found=explanation,
                    )
            return self._error(
                404, "No such store path", "The image has no such store path, or was not built yet."
            )

        return await self._writer.write(page)

    async def _problems(self, named: NamedImage) -> Sequence[_Problem]:
        """Names for which an image that is not stored cannot be built, each with near names and links to their images."""
        if not named.missing:
            return ()
        try:
            checked = await self._packages.check(named.tag, named.missing[0].requested)
        except NixeryError:
            return ()  # the page has answers without it
        return [
            (name, [(near, _with_name(named, name.name, near)) for near in name.near_names])
            for name in checked
            if name.exists is False or name.reason
        ]

    async def _search(self, request: Request) -> Response:
        found = await self._packages.find(request, _FOUND if request.query.get("q") else 0, suggest=True)
        if found is None:
            return self._listing_in_progress()
        page = partial(
            self._templates.response,
            "packages.html",
            text=request.query.get("q", ""),
            tag=self._tag(request),
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
            tag=self._tag(request),
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
        tag = self._tag(request)
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
            platforms=[_PLATFORMS.get(one, one) for one in (attribute.platforms if attribute else ())],
            compose=Composition.of_image(image, tag).address,
            known=self._size_of(image, package.name),
            is_only=self._descriptions.ignores_tags and len(details.versions) == 1,
            tag=tag,
            image=f"{image}:{tag}",
            lines=_pull_lines(request, f"{image}:{tag}"),
        )
        return await self._writer.write(page)

    def _size_of(self, *names: str) -> BuildReport | None:
        """Return the last build that packed one of the images, for the size of the image."""
        wanted = {(name, str(self._platforms[0])) for name in names}
        return next(
            (
                report
                for report in self._builds.recent()
                if (report.name, report.platform) in wanted
                and report.manifest is not None
                and report.layers is not None
            ),
            None,
        )

    def _tag(self, request: Request) -> str:
        return DEFAULT_TAG if self._descriptions.ignores_tags else request.query.get("tag", DEFAULT_TAG)

    def _listing_in_progress(self) -> Response:
        page = self._error(
            503,
            "Listing the packages",
            "The server lists the package set. Reload this page in a few seconds.",
        )
        return replace(page, headers={**page.headers, "Retry-After": "5"})

    def _error(self, status: int, title: str, message: str) -> BytesResponse:
        return self._templates.response("error.html", status, title=title, message=message)


def _image_meant(request: Request) -> str | None:
    """Return the image that somebody may have meant who opened its reference, as clients take it, in a browser."""
    name, colon, tag = request.path.removeprefix("/").partition(":")
    try:
        validate_name(name)
        if colon and not isinstance(parse_reference(tag), Tag):
            return None
    except NixeryError:
        return None
    return None if name.partition("/")[0] in _TAKEN else name + colon + tag


@dataclass(frozen=True, slots=True)
class Composition:
    """The fields of the form on the first page.

    Attributes:
        packages: separated by spaces.
        platform: empty for the default.
    """

    packages: str = ""
    platform: str = ""
    tag: str = "latest"
    shell: bool = True

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Composition:
        """Read the fields from the address of the first page."""
        if "packages" not in query:
            return cls()
        return cls(
            query["packages"][:_LONGEST_TEXT],
            query.get("platform", "")[:_LONGEST_TEXT],
            query.get("tag", "")[:_LONGEST_TEXT] or "latest",
            "shell" in query,
        )

    @classmethod
    def of_image(cls, name: str, tag: str) -> Composition:
        """Read the fields from the name and the tag of an image."""
        parts = name.split("/")
        prefixes = list(takewhile(PREFIXES.__contains__, parts))
        platform = next((part for part in prefixes if part != "shell"), "")
        return cls(" ".join(parts[len(prefixes) :]), platform, tag, "shell" in prefixes)

    @property
    def address(self) -> str:
        """The address of the first page with these fields."""
        given = {
            "packages": self.packages,
            "platform": self.platform,
            "tag": "" if self.tag == "latest" else self.tag,
            "shell": "1" if self.shell else "",
        }
        return "/?" + urlencode({name: value for name, value in given.items() if value}) + "#compose"


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


def _shown_image(image: ImageDescription, closure: ImageClosure | None) -> ShownImage:
    paths = closure.in_layers() if closure is not None else {}
    names = {number: within[0].name for number, within in paths.items()}
    left = _LINKED_PATHS
    layers = []
    by_size = sorted(enumerate(image.layers, 1), key=lambda pair: (-pair[1].size, pair[0]))
    for number, layer in by_size:
        linked = paths.get(number, ())[: min(left, _LINKED_OF_LAYER)]
        left -= len(linked)
        layers.append(ShownLayer(number, layer, linked, len(paths.get(number, ())) - len(linked)))
    return ShownImage(
        image,
        closure,
        closure.needed_alone() if closure is not None else {},
        [treemap(image, WIDE, names), treemap(image, NARROW, names)],
        layers,
        any(package.licences for package in image.packages),
        closure.alone(SHELL) if closure is not None else 0,
    )


def _with_name(named: NamedImage, wrong: str, right: str) -> str:
    """Return the path of the page of an image with another package in place of one."""
    name = "/".join(right if component == wrong else component for component in named.name.split("/"))
    return f"/images/{quote(name)}:{quote(named.tag)}"


def _pull_lines(request: Request, image: str, digest: str | None = None) -> list[PullLine]:
    """Return the lines that pull an image by its tag, and by its digest if that is known."""
    reference = f"{host(request)}/{image}"
    # Podman refuses an unencrypted registry unless told otherwise.
    plain = "" if is_encrypted(request) else "--tls-verify=false "
    return [
        PullLine("Docker", f"docker run --rm -it {reference}"),
        PullLine("Podman", f"podman run --rm -it {plain}{reference}"),
        PullLine("Pull only", f"docker pull {reference}"),
        PullLine("Kubernetes", f"kubectl run -it --rm --restart=Never --image={reference} nixery"),
        *([PullLine("By digest", f"docker pull {_by_digest(request, image, digest)}")] if digest else []),
    ]


def _by_digest(request: Request, image: str, digest: str) -> str:
    return f"{host(request)}/{image.partition(':')[0]}@{digest}"


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
