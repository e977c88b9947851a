"""``/api/v1``: the JSON API of the pages, and of programs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nixery.access.identity import Right
from nixery.access.policy import current_access, note_quota
from nixery.builds.descriptions import ImageDescription, ImageDescriptions, Shared
from nixery.builds.history import BuildReport, Line
from nixery.builds.images import Images
from nixery.builds.index_records import Progress
from nixery.builds.package_search import FoundPackage
from nixery.builds.pins import DEFAULT_TAG
from nixery.errors import InvalidReference, ManifestUnknown, NixeryError
from nixery.image.name import ImageRequest, Tag, parse_reference, requests_for
from nixery.image.platform import Platform
from nixery.plain_text import shortened
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.clients import image_path
from nixery.server.compression import compressed
from nixery.server.errors import error_response, errors_body
from nixery.server.http import (
    AnswerWriter,
    BytesResponse,
    Request,
    Response,
    StreamResponse,
    json_content,
)
from nixery.server.published_builds import PublishedBuilds, is_allowed
from nixery.server.published_packages import (
    LARGEST_LIMIT,
    CheckedName,
    FoundPackages,
    MetaPackages,
    PackageDetails,
    PublishedPackages,
    command_of,
    contents_of,
    is_available,
)
from nixery.sources.source import Pin

_ROUTE = re.compile(
    r"/api/v1/(?:(?P<list>packages|names|meta-packages|builds|index)"
    r"|packages/(?P<package>[^/]+)"
    r"|builds/(?P<build>[0-9a-f]{1,64})(?:(?P<events>/events)|(?P<cancel>/cancel))?"
    r"|images/(?P<image>.+)|digests/(?P<digest>.+))",
    re.DOTALL,
)

# Results of a search by default.
_DEFAULT_LIMIT = 20

# Of a package in a list: characters of its description, and programs. Characters of a reason.
_SHORT_DESCRIPTION, _FEW_PROGRAMS, _LONGEST_REASON = 500, 20, 500

# The kinds of attributes that images can have.
_KINDS = frozenset({"package", "list", "definition", "meta-package"})

# Builds of a list.
_LISTED = 50

# Characters of a wrong parameter in an error.
_SHOWN = 20

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Packages:
    """``packages``, ``names`` and ``index``: searches the package set, while a name is being typed, and describes packages.

    Args:
        packages: of the package set.
        writer: of answers.
    """

    def __init__(self, packages: PublishedPackages, writer: AnswerWriter) -> None:
        self._packages = packages
        self._writer = writer

    async def search(self, request: Request) -> Response:
        """Find packages by parts of their names, by programs, and by words of their descriptions.

        Raises:
            TooBusy: too many searches are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        wanted = request.query.get("limit", str(_DEFAULT_LIMIT))
        limit = int(wanted) if _NUMBER.fullmatch(wanted) else -1
        if not 0 <= limit <= LARGEST_LIMIT:
            message = f"limit should be a number from 0 to {LARGEST_LIMIT}, not {shortened(wanted, _SHOWN)!r}"
            return errors_body(400, "UNSUPPORTED", message)
        found = await self._packages.find(request, limit)
        if found is None:
            return listing_in_progress()
        return await self._writer.write(partial(_found, found))

    async def get(self, request: Request, name: str) -> Response:
        """Describe one package.

        Raises:
            TooBusy: too many descriptions are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        details = await self._packages.describe(request, name)
        if details is None:
            return listing_in_progress()
        return await self._writer.write(lambda: _json(_details(details)))

    async def check(self, request: Request) -> Response:
        """Check whether the package set has some names, and find near names of those that it lacks.

        Raises:
            TooBusy: too many searches are waiting.
            NixeryError: the tag is unknown, or the storage cannot be read.
        """
        names = list(dict.fromkeys(request.query.get("q", "").lower().split()))
        checked = await self._packages.check(request.query.get("tag", "latest"), names)
        return _json({"names": [_checked(one) for one in checked]})

    async def meta(self, request: Request) -> Response:
        """List the names that stand for several packages.

        Raises:
            TooBusy: too many descriptions are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        found = await self._packages.meta_packages(request)
        if found is None:
            return listing_in_progress()
        return await self._writer.write(partial(_meta_packages, found))

    async def progress(self, request: Request) -> Response:
        """Describe the progress of the index, with attributes whose evaluation failed.

        Raises:
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        found = await self._packages.find(request, 0)
        if found is None:
            return listing_in_progress()
        return await self._writer.write(partial(_failures, found.progress))


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    tag: str = "latest"


class Builds:
    """``builds``: reports of builds, and starting one.

    Args:
        builds: the reports.
        images: starts builds.
        cancellation: ends builds.
        platforms: of a name without a platform.
    """

    def __init__(
        self,
        builds: PublishedBuilds,
        images: Images,
        cancellation: BuildCancellation,
        platforms: Sequence[Platform],
    ) -> None:
        self._builds = builds
        self._cancellation = cancellation
        self._images = images
        self._platforms = platforms

    async def recent(self, request: Request) -> Response:
        """List the latest builds; with ``state``, those in that state.

        Raises:
            TooBusy: too many requests are waiting.
        """
        wanted = request.query.get("state")
        await self._builds.refresh()
        async with self._builds.turn():
            reports = [report for report in self._builds.recent() if wanted in (None, report.state.value)]
            return _json({"builds": [_build(report, log=False) for report in reports[:_LISTED]]})

    async def begin(self, request: Request) -> Response:
        """Start a build, or join it if it is running, without waiting for it.

        Raises:
            NixeryError: the name or the tag is invalid, or too many builds are waiting.
        """
        # A form of another site can post, but not with this type (Fetch standard, "CORS-safelisted
        # request-header").
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return errors_body(415, "UNSUPPORTED", "send application/json")
        if request.body is None:
            return errors_body(413, "SIZE_INVALID", "the body is too large")
        try:
            wanted = _Wanted.model_validate_json(request.body)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the body"
            return errors_body(400, "UNSUPPORTED", f"{where}: {problem['msg']}")
        if not isinstance(parse_reference(wanted.tag), Tag):
            raise InvalidReference(wanted.tag)
        requests = requests_for(wanted.name, self._platforms)
        current_access().require(Right.BUILD, requests, wanted.name, wanted.tag)
        try:
            begun = await self._images.begin(requests, wanted.tag)
        except NixeryError as error:
            note_quota(wanted.name, error)
            raise
        # The client may ask another server about them next.
        await self._builds.shared([build.id for build in begun])
        documents = [
            {
                "id": build.id,
                "platform": str(build.request.platform),
                "url": f"/api/v1/builds/{build.id}",
                "page": f"/builds/{build.id}",
            }
            for build in begun
        ]
        return _json({"builds": documents}, 202, {"Location": documents[0]["url"]})

    async def cancel(self, request: Request, build: str) -> Response:
        """Cancel a build.

        Raises:
            NixeryError: the asker may not, or too many requests are waiting.
        """
        return await self._cancellation.cancel(request, build)

    async def get(self, build: str) -> Response:
        """Describe a build, with its log.

        Raises:
            TooBusy: too many requests are waiting.
        """
        report = await self._builds.find(build)
        async with self._builds.turn():
            return _unknown(build) if report is None else _json(_build(report, log=True))

    async def events(self, request: Request, build: str) -> Response:
        """Stream the changes of a build as server-sent events, after the last one that the client has.

        The stream raises ``TooBusy`` before its first event if too many streams are open or requests waiting.
        """
        if await self._builds.find(build) is None:
            return _unknown(build)
        last = request.headers.get("last-event-id", "")
        after = int(last) if _NUMBER.fullmatch(last) else 0
        headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # or nginx keeps events until it has many
        }
        return StreamResponse(200, None, lambda: self._events(build, after), headers)

    async def _events(self, build: str, after: int) -> AsyncGenerator[bytes, None]:
        # HTML standard, 9.2: a comment keeps the connection open; after an end, the client reconnects unless
        # the server forbids it.
        last, is_first = -1, True
        async with aclosing(self._builds.follow(build, after)) as changes:
            async for report, lines in changes:
                if report.number == last:
                    yield b": nothing new\n\n"
                    continue
                last = report.number
                kind = "end" if report.is_over else "change"
                # The first change contains the whole log. The following ones are small, with a pause between
                # them.
                async with self._builds.turn() if is_first else nullcontext():
                    data = json_content(_change(report, lines))
                is_first = False
                yield f"id: {last}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"


class ImageDocuments:
    """``images``: describes stored images; builds none.

    Args:
        descriptions: of images.
        platforms: of a name without a platform.
        writer: of answers.
        compare: whether the names of other images may be shown.
    """

    def __init__(
        self,
        descriptions: ImageDescriptions,
        platforms: Sequence[Platform],
        writer: AnswerWriter,
        *,
        compare: bool,
    ) -> None:
        self._descriptions = descriptions
        self._writer = writer
        self._platforms = platforms
        self._compare = compare

    async def get(self, image: str) -> Response:
        """Describe the image of a name and a tag, for each platform.

        Raises:
            ManifestUnknown: it was not built yet.
            NixeryError: the name or the tag is invalid.
        """
        named = await describe(self._descriptions, image, self._platforms, compare=self._compare)
        if not named.found:
            raise ManifestUnknown(image, "was not built yet; pull it, or start a build")
        answer = {
            "name": named.name,
            "tag": named.tag,
            # The source may be a directory of this machine, whose path clients must not learn.
            "pin": {"revision": named.pin.revision, "url": named.pin.url, "tag": named.exact_tag},
            "platforms": [_image(description, self._platforms) for description in named.found],
        }
        return await self._writer.write(partial(_json, answer))

    async def digest(self, image: str) -> Response:
        """Answer with the digest of the image of a name and a tag, or with none if it was not built yet or the client may not pull it.

        A name for several platforms has none: the digest of such an image is that of its index, which is not
        looked up.

        Raises:
            NixeryError: the name or the tag is invalid, or the source is unavailable.
        """
        name, tag, requests = _parsed(image, self._platforms)
        # Not a 401: while a name is being composed, the browser would ask for a password.
        if not current_access().allows(Right.PULL, requests, tag):
            return _json({"name": name, "tag": tag, "digest": None})
        pin = await self._descriptions.pin(tag)
        if self._descriptions.ignores_tags:
            tag = DEFAULT_TAG
        digest = await self._descriptions.digest(requests[0], pin) if len(requests) == 1 else None
        return _json({"name": name, "tag": tag, "digest": digest})


class Api:
    """Routes requests below ``/api/v1``."""

    def __init__(self, packages: Packages, builds: Builds, images: ImageDocuments) -> None:
        self._packages = packages
        self._builds = builds
        self._images = images

    async def answer(self, request: Request) -> Response:
        """Answer a request; never raises for anything a client can do."""
        return await compressed(request, await self._answer(request))

    async def _answer(self, request: Request) -> Response:
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return errors_body(404, "UNSUPPORTED", f"no such route: {request.path}")
        allowed = (
            "POST" if match["cancel"] else "GET, HEAD, POST" if match["list"] == "builds" else "GET, HEAD"
        )
        if request.method not in allowed.split(", "):
            message = f"method not allowed: use {allowed}"
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": allowed})
        try:
            if match["cancel"]:
                return await self._builds.cancel(request, match["build"])
            begins = request.method == "POST"
            return await (self._builds.begin(request) if begins else self._read(request, match))
        except NixeryError as error:
            return error_response(current_access().without_hidden(error))

    async def _read(self, request: Request, match: re.Match[str]) -> Response:  # noqa: PLR0911 -- a route each
        match match.groupdict():
            case {"list": "packages"}:
                return await self._packages.search(request)
            case {"list": "names"}:
                return await self._packages.check(request)
            case {"list": "meta-packages"}:
                return await self._packages.meta(request)
            case {"list": "index"}:
                return await self._packages.progress(request)
            case {"list": "builds"}:
                return await self._builds.recent(request)
            case {"package": str(name)}:
                return await self._packages.get(request, name)
            case {"build": str(build), "events": str()}:
                return await self._builds.events(request, build)
            case {"build": str(build)}:
                return await self._builds.get(build)
            case {"digest": str(image)}:
                return await self._images.digest(image)
            case _:
                return await self._images.get(match["image"])


@dataclass(frozen=True, slots=True)
class NamedImage:
    """The stored and the missing images of a name and a tag.

    Attributes:
        pin: the state of the package source that the tag stands for.
        exact_tag: the tag that stands for that state for ever; ``None`` if the source accepts no commits as tags.
        found: descriptions of the stored images.
        missing: requests whose image was not built yet.
        ignored_tag: the tag that was asked for, if it selects nothing: the source has one state, which is ``latest``.
    """

    name: str
    tag: str
    pin: Pin
    exact_tag: str | None
    found: Sequence[ImageDescription]
    missing: Sequence[ImageRequest]
    ignored_tag: str | None = None


def visible(images: Sequence[Shared]) -> list[Shared]:
    """Return the images that the asker may pull."""
    if not current_access().is_restricted:
        return list(images)
    return [one for one in images if is_allowed(Right.PULL, one.build)]


async def describe(
    descriptions: ImageDescriptions, image: str, platforms: Sequence[Platform], *, compare: bool
) -> NamedImage:
    """Describe the images of ``NAME[:TAG]``, one for each platform.

    Args:
        descriptions: of images.
        image: name and tag.
        platforms: of a name without a platform.
        compare: whether to name other images that share layers.

    Raises:
        ManifestUnknown: the reference is not a tag of the package source.
        NixeryError: the name or the tag is invalid, or the source is unavailable.
    """
    name, tag, requests = _parsed(image, platforms)
    current_access().require(Right.PULL, requests, name, tag)
    pin = await descriptions.pin(tag)
    is_ignored = tag != DEFAULT_TAG and descriptions.ignores_tags
    found = await asyncio.gather(
        *(descriptions.describe(request, pin, compare=compare) for request in requests)
    )
    return NamedImage(
        name,
        DEFAULT_TAG if is_ignored else tag,
        pin,
        descriptions.exact_tag(pin),
        [description for description in found if description is not None],
        [request for request, description in zip(requests, found, strict=True) if description is None],
        tag if is_ignored else None,
    )


def _parsed(image: str, platforms: Sequence[Platform]) -> tuple[str, str, Sequence[ImageRequest]]:
    """Return the name and the tag in ``NAME[:TAG]``, and a request for each platform.

    Raises:
        ManifestUnknown: the reference is not a tag of the package source.
        NixeryError: the name or the tag is invalid, or the asker may not pull it.
    """
    name, _, given = image.partition(":")
    requests = requests_for(name, platforms)
    match parse_reference(given or "latest"):
        case Tag(name=tag, is_derived_from_digest=False):
            return name, tag, requests
        case _:
            raise ManifestUnknown(given, "is not a tag of the package source")


def _json(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> BytesResponse:
    return BytesResponse(status, json_content(document), {**_HEADERS, **(headers or {})})


def listing_in_progress() -> Response:
    """Answer a request that has waited long enough for the list of a package set."""
    message = "the package set is being listed: try again in a few seconds"
    return errors_body(503, "UNKNOWN", message, headers={"Retry-After": "5"})


def _unknown(build: str) -> Response:
    return errors_body(404, "BUILD_UNKNOWN", f"no such build: {build}; the server keeps only recent ones")


def _found(found: FoundPackages) -> Response:
    packages = [_package(package, found.progress) for package in found.packages]
    return _json({"packages": packages, "total": found.total, "index": _progress(found.progress)})


def _meta_packages(found: MetaPackages) -> Response:
    documents = [
        {
            "name": name,
            "description": attribute.description if attribute else "",
            "available": None if attribute is None else not attribute.reason,
            "reason": (attribute and shortened(attribute.reason, _LONGEST_REASON)) or None,
            "command": list(command_of(attribute)),
            "contents": _contents(contents_of(attribute)),
        }
        for name, attribute in found.found
    ]
    return _json({"meta_packages": documents, "index": _progress(found.progress)})


def _contents(packages: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "version": version} for name, version in packages]


def _failures(progress: Progress) -> Response:
    failures = [
        {"attribute": attribute, "reason": shortened(reason, _LONGEST_REASON)}
        for attribute, reason in progress.failures
    ]
    return _json({**_progress(progress), "failures": failures})


def _package(package: FoundPackage, progress: Progress) -> dict[str, Any]:
    return {
        "name": package.name,
        "attribute": package.attribute,
        "version": package.version,
        "description": shortened(package.description, _SHORT_DESCRIPTION),
        "programs": list(package.programs[:_FEW_PROGRAMS]),
        "available": is_available(package, progress),
        "reason": shortened(package.reason, _LONGEST_REASON) or None,
        "alias_of": package.alias_of or None,
    }


def _checked(name: CheckedName) -> dict[str, Any]:
    return {
        "name": name.name,
        "exists": name.exists,
        "reason": shortened(name.reason, _LONGEST_REASON) or None,
        "near_names": list(name.near_names),
    }


def _details(details: PackageDetails) -> dict[str, Any]:
    package, attribute = details.package, details.attribute
    return {
        **_package(package, details.progress),
        "description": package.description,
        "programs": list(package.programs),
        "available": is_available(package, details.progress) if attribute is None else not attribute.reason,
        "kind": attribute.kind if attribute is not None and attribute.kind in _KINDS else None,
        "homepage": (attribute and attribute.homepage) or None,
        "licences": list(attribute.licences) if attribute else [],
        "main_program": (attribute and attribute.main_program) or None,
        "platforms": list(attribute.platforms) if attribute else [],
        "outputs": dict(attribute.outputs) if attribute else {},
        "contents": _contents(details.contents),
        "versions": [
            {"version": one.version, "revision": one.revision, "tag": one.tag or None, "created": one.created}
            for one in details.versions
        ],
        "index": _progress(details.progress),
    }


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "revision": progress.revision,
        "attributes": progress.attributes,
        "evaluated": progress.evaluated,
        "failed": progress.failed,
        "complete": progress.is_complete,
    }


def _build(report: BuildReport, *, log: bool) -> dict[str, Any]:
    document = report.model_dump(mode="json", exclude=None if log else {"log"})
    return {**document, "url": f"/api/v1/builds/{report.id}", "page": f"/builds/{report.id}"}


def _change(report: BuildReport, lines: Sequence[Line]) -> dict[str, Any]:
    return {"build": _build(report, log=False), "lines": [line.model_dump() for line in lines]}


def _image(image: ImageDescription, platforms: Sequence[Platform]) -> dict[str, Any]:
    return {
        "platform": image.platform,
        "digest": image.digest,
        "size": image.size,
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "licences": list(package.licences),
                "description": package.description,
            }
            for package in image.packages
        ],
        "layers": [
            {"digest": layer.digest, "size": layer.size, "packages": list(layer.packages)}
            for layer in image.layers
        ],
        "config": image.config,
        "annotations": image.annotations,
        "shared": [
            {
                "image": image_path(shared.build.name, shared.build.platform, platforms),
                "digest": shared.build.manifest,
                "layers": shared.layers,
                "size": shared.size,
            }
            for shared in visible(image.shared)
        ],
    }
