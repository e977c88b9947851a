"""``/api/v1/builds``: what is built, and having something built."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext

from pydantic import BaseModel, ConfigDict, ValidationError

from nixery.builds.images import Images
from nixery.errors import InvalidReference
from nixery.image.name import Tag, parse_reference, requests_for
from nixery.image.platform import Platform
from nixery.server.api.documents import build_document, change_document, json_response
from nixery.server.errors import errors_body
from nixery.server.http import Request, Response, StreamResponse, json_content
from nixery.server.published_builds import PublishedBuilds

# Builds of a list.
_LISTED = 50

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    tag: str = "latest"


class Builds:
    """Builds that go on or have ended.

    Args:
        builds: that are known.
        warming: begins others.
        platforms: of a name that says none.
    """

    def __init__(self, builds: PublishedBuilds, warming: Images, platforms: Sequence[Platform]) -> None:
        self._builds = builds
        self._warming = warming
        self._platforms = platforms

    async def recent(self, request: Request) -> Response:
        """List the latest builds; with ``state``, those alone.

        Raises:
            TooBusy: too many others ask.
        """
        wanted = request.query.get("state")
        async with self._builds.turn():
            reports = [report for report in self._builds.recent() if wanted in (None, report.state.value)]
            return json_response(
                {"builds": [build_document(report, log=False) for report in reports[:_LISTED]]}
            )

    async def begin(self, request: Request) -> Response:
        """Have an image built that nobody waits for.

        Raises:
            NixeryError: the name or the tag cannot be one.
        """
        # A form of another site can post, but not with this type (Fetch standard, "CORS-safelisted request-header").
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
        begun = await self._warming.begin(requests_for(wanted.name, self._platforms), wanted.tag)
        documents = [
            {
                "id": build.id,
                "platform": str(build.request.platform),
                "url": f"/api/v1/builds/{build.id}",
                "page": f"/builds/{build.id}",
            }
            for build in begun
        ]
        return json_response({"builds": documents}, 202, {"Location": documents[0]["url"]})

    async def get(self, build: str) -> Response:
        """Describe a build, with its log.

        Raises:
            TooBusy: too many others ask.
        """
        async with self._builds.turn():
            report = self._builds.get(build)
            return _unknown(build) if report is None else json_response(build_document(report, log=True))

    async def events(self, request: Request, build: str) -> Response:
        """Tell what happens in a build as server-sent events, beginning after the one that the client has.

        The stream raises ``TooBusy`` before its first event if too many others ask, or follow builds.
        """
        if self._builds.get(build) is None:
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
        # HTML standard, 9.2: a comment keeps the connection open; after an end, the client comes back unless it is told not to.
        last, is_first = -1, True
        async with aclosing(self._builds.follow(build, after)) as changes:
            async for report, lines in changes:
                if report.number == last:
                    yield b": nothing new\n\n"
                    continue
                last = report.number
                kind = "end" if report.is_over else "change"
                # The first change has the whole log in it. Those that follow are small, and have a pause between them.
                async with self._builds.turn() if is_first else nullcontext():
                    data = json_content(change_document(report, lines))
                is_first = False
                yield f"id: {last}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"


def _unknown(build: str) -> Response:
    return errors_body(404, "BUILD_UNKNOWN", f"there is no build {build}, or it was too long ago")
