"""The API, with a made-up package set, builder and descriptions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.events import Build, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.builds.images import Images
from nixery.builds.packages import PackageIndex, PackageNames
from nixery.errors import NixeryError, TagUnknown
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64, ARM64
from nixery.nix.packages import Details
from nixery.server import api as module
from nixery.server.api import Api, Builds, ImageDocuments, Packages
from nixery.server.http import BytesResponse, Request, Response, StreamResponse
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from tests.unit.server.conftest import PIN, FakeDescriptions


class FakeIndex:
    """A ``PackageIndex`` of one package set, which may be slow."""

    def __init__(self) -> None:
        self.listed = asyncio.Event()
        self.listed.set()

    async def names(self, tag: str) -> PackageNames:
        await self.listed.wait()
        if tag != "latest":
            raise TagUnknown(tag, "the source has no such tag")
        return PackageNames({"git": Details("2.47", "a tool"), "gitweb": Details("2.47", "a page")})


class FakeImages:
    """A ``Images`` that begins builds in a history only."""

    def __init__(self) -> None:
        self.begun: list[tuple[Sequence[ImageRequest], str]] = []

    async def begin(self, requests: Sequence[ImageRequest], tag: str) -> list[Build]:
        self.begun.append((requests, tag))
        return [Build.of(request, PIN) for request in requests]


class Server:
    """An API and its dependencies."""

    def __init__(self, history: BuildHistory) -> None:
        self.index, self.images = FakeIndex(), FakeImages()
        self.history = history
        published = PublishedBuilds(self.history, FollowerBounds(10, 10), public=True)
        platforms = (AMD64, ARM64)
        builds = Builds(published, cast("Images", self.images), platforms)
        images = ImageDocuments(cast("ImageDescriptions", FakeDescriptions()), platforms, compare=True)
        self.api = Api(Packages(cast("PackageIndex", self.index)), builds, images)

    async def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = b"",
    ) -> Response:
        return await self.api.answer(Request(method, f"/api/v1/{path}", headers or {}, query or {}, body))

    async def json(self, path: str, status: int = 200, **query: str) -> Any:  # noqa: ANN401 -- JSON is anything
        answer = await self.ask(path, query=query)
        assert isinstance(answer, BytesResponse)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
        return json.loads(answer.content)

    async def post(self, body: bytes | None, content_type: str = "application/json") -> tuple[int, Any]:
        answer = await self.ask("builds", "POST", headers={"content-type": content_type}, body=body)
        assert isinstance(answer, BytesResponse)
        return answer.status, json.loads(answer.content)

    def build(self, name: str) -> Build:
        (request,) = requests_for(name, (AMD64,))
        build = Build.of(request, PIN)
        self.history.observe(build, Started())
        return build


@pytest.fixture
def server(history: BuildHistory) -> Server:
    return Server(history)


async def test_packages_are_searched_by_name(server: Server) -> None:
    git = {"name": "git", "version": "2.47", "description": "a tool"}
    assert await server.json("packages", q="git", limit="1") == {"packages": [git], "total": 2}
    assert len((await server.json("packages", q="git", limit="no number"))["packages"]) == 2
    assert await server.json("packages", q="git", limit="0") == {"packages": [], "total": 2}
    assert await server.json("packages/git") == git
    assert (await server.json("packages/htop", 404))["errors"][0]["code"] == "NAME_UNKNOWN"


async def test_an_unknown_tag_is_an_error(server: Server) -> None:
    for tag in ("unknown", "sha256:0", ".invalid"):
        assert (await server.json("packages", 404 if tag != "sha256:0" else 400, tag=tag))["errors"]


async def test_a_client_does_not_wait_long_for_a_listing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LISTING_TIMEOUT", 0)
    server.index.listed.clear()
    answer = await server.ask("packages", query={"q": "git"})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert (await server.ask("packages/git")).status == 503


async def test_a_build_is_started_for_each_platform(server: Server) -> None:
    status, document = await server.post(b'{"name": "shell/git", "tag": "v1"}')
    assert status == 202
    ((requests, tag),) = server.images.begun
    assert (tag, [request.platform for request in requests]) == ("v1", [AMD64, ARM64])
    assert [build["platform"] for build in document["builds"]] == ["linux/amd64", "linux/arm64"]
    assert all(build["url"] == f"/api/v1/builds/{build['id']}" for build in document["builds"])


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"name=git", "application/x-www-form-urlencoded", 415, "application/json"),
        (b"{}", "text/plain", 415, "application/json"),
        (None, "application/json", 413, "too large"),
        (b"{", "application/json", 400, "the body"),
        (b"{}", "application/json; charset=utf-8", 400, "name"),
        (b'{"name": 1}', "application/json", 400, "name"),
        (b'{"name": "git", "more": 1}', "application/json", 400, "more"),
        (b'{"name": "Git"}', "application/json", 400, "Git"),
        (b'{"name": "git", "tag": "a/b"}', "application/json", 404, "a/b"),
    ],
)
async def test_an_invalid_request_starts_no_build(
    server: Server, body: bytes | None, content_type: str, status: int, message: str
) -> None:
    found, document = await server.post(body, content_type)
    assert found == status
    assert message in document["errors"][0]["message"]
    assert server.images.begun == []


async def test_builds_are_listed_by_state(server: Server) -> None:
    running, failed = server.build("git"), server.build("htop")
    server.history.observe(failed, Failed(NixeryError("no compiler")))
    listed = (await server.json("builds"))["builds"]
    assert [build["id"] for build in listed] == [failed.id, running.id]
    assert "log" not in listed[0]
    assert [build["id"] for build in (await server.json("builds", state="failed"))["builds"]] == [failed.id]
    assert (await server.json(f"builds/{failed.id}"))["error"] == "no compiler"
    for path in ("builds/0123", "builds/0123/events"):
        assert (await server.json(path, 404))["errors"][0]["code"] == "BUILD_UNKNOWN"


async def test_the_events_of_a_build_end_with_it(server: Server) -> None:
    build = server.build("git")
    server.history.observe(build, Failed(NixeryError("no compiler")))
    answer = await server.ask(f"builds/{build.id}/events", headers={"last-event-id": "nonsense"})
    assert isinstance(answer, StreamResponse)
    assert (answer.length, answer.headers["Content-Type"]) == (None, "text/event-stream")
    (event,) = [event async for event in answer.begin()]
    number, kind, data, *_ = event.decode().split("\n")
    assert number.startswith("id: ")
    assert kind == "event: end"
    assert json.loads(data.removeprefix("data: "))["build"]["error"] == "no compiler"


async def test_a_stored_image_is_described_for_its_platforms(server: Server) -> None:
    for path, tag in (("images/shell/git", "latest"), ("images/shell/git:v1", "v1")):
        document = await server.json(path)
        assert (document["name"], document["tag"]) == ("shell/git", tag)
        assert document["pin"] == {"revision": PIN.revision, "url": PIN.url}
        (image,) = document["platforms"]
        assert (image["platform"], image["size"]) == ("linux/amd64", 7)
        assert image["layers"] == [{"digest": "sha256:1", "size": 7, "packages": ["git"]}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/htop", (404, "MANIFEST_UNKNOWN")),
        (f"images/git:sha256-{'0' * 64}", (404, "MANIFEST_UNKNOWN")),
        ("images/Git", (400, "NAME_INVALID")),
        ("nothing", (404, "UNSUPPORTED")),
    ],
)
async def test_an_image_that_was_not_built_is_unknown(
    server: Server, path: str, expected: tuple[int, str]
) -> None:
    document = await server.json(path, expected[0])
    assert document["errors"][0]["code"] == expected[1]
    assert server.images.begun == []


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("packages", "POST", "GET, HEAD"),
        ("builds", "DELETE", "GET, HEAD, POST"),
        ("images/git", "PUT", "GET, HEAD"),
    ],
)
async def test_other_methods_are_not_allowed(server: Server, path: str, method: str, allowed: str) -> None:
    answer = await server.ask(path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
