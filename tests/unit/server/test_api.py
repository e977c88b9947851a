"""The API, with a made-up package set, builder and descriptions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.events import Build, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.builds.images import Images
from nixery.builds.index_records import Progress
from nixery.builds.package_index import PackageIndex
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.errors import NixeryError
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64, ARM64
from nixery.server import published_packages as module
from nixery.server.api import Api, Builds, ImageDocuments, Packages
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.http import AnswerWriter, BytesResponse, Request, Response, StreamResponse, json_content
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.published_packages import PublishedPackages
from tests.unit.server.conftest import FAILURE, PIN, FakeDescriptions, FakeIndex


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
        self.index, self.images, self.descriptions = FakeIndex(), FakeImages(), FakeDescriptions()
        self.history = history
        published = PublishedBuilds(self.history, FollowerBounds(10, 10), public=True)
        platforms = (AMD64, ARM64)
        builds = Builds(published, cast("Images", self.images), cast("BuildCancellation", None), platforms)
        writer = AnswerWriter()
        images = ImageDocuments(cast("ImageDescriptions", self.descriptions), platforms, writer, compare=True)
        self.api = Api(Packages(PublishedPackages(cast("PackageIndex", self.index)), writer), builds, images)

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


INDEX = {"revision": "r1", "attributes": 31293, "evaluated": 8249, "failed": 101, "complete": False}


async def test_packages_are_searched_by_name(server: Server) -> None:
    git = {
        "name": "git",
        "attribute": "git",
        "version": "2.47",
        "description": "a tool",
        "programs": ["git"],
        "available": True,
        "reason": None,
        "alias_of": None,
    }
    expected = {"packages": [git], "total": 6, "index": INDEX}
    assert await server.json("packages", q="git", limit="1") == expected
    assert await server.json("packages", q="git", limit="0") == {**expected, "packages": []}


@pytest.mark.parametrize("limit", ["101", "100000", "-1", "no number", "٣", ""])
async def test_a_limit_that_is_too_large_or_no_number_is_refused(server: Server, limit: str) -> None:
    refused = await server.json("packages", 400, q="git", limit=limit)
    assert "from 0 to 100" in refused["errors"][0]["message"]


async def test_results_say_what_stands_in_the_way(server: Server) -> None:
    found = {one["name"]: one for one in (await server.json("packages", q=""))["packages"]}
    assert (found["slack"]["available"], found["slack"]["reason"]) == (False, "unfree")
    assert found["gitfull"]["alias_of"] == "git"
    assert found["libstdc__2b__2b6"]["attribute"] == "libstdc++6"
    # Not evaluated yet.
    assert found["later"]["available"] is None
    server.index.progress = replace(server.index.progress, is_complete=True)
    found = {one["name"]: one for one in (await server.json("packages", q=""))["packages"]}
    assert found["later"]["available"] is True


async def test_meta_packages_are_listed_with_what_they_stand_for(server: Server) -> None:
    found = await server.json("meta-packages")
    assert found["index"] == INDEX
    ci, debug, shell = found["meta_packages"]
    assert ci == {
        "name": "ci",
        "description": "programs of <pipelines>",
        "available": True,
        "reason": None,
        "command": ["bash"],
        "contents": [{"name": "git", "version": "2.47"}],
    }
    assert (debug["available"], debug["reason"]) == (False, "incomplete: it stands for strace")
    # Not evaluated yet.
    assert (shell["available"], shell["reason"], shell["contents"]) == (None, None, [])


async def test_a_package_is_described_with_its_versions(server: Server) -> None:
    found = await server.json("packages/git")
    assert (found["kind"], found["available"], found["main_program"]) == ("package", True, "git")
    assert (found["homepage"], found["licences"]) == ("https://git.example/", ["GPL-2.0-only"])
    assert found["outputs"] == {"out": "/nix/store/0-git"}
    assert [(one["version"], one["tag"]) for one in found["versions"]] == [
        ("2.47", "latest"),
        ("2.44", "0" * 40),
        ("2.30", None),
    ]
    assert found["index"] == INDEX
    found = await server.json("packages/slack")
    assert (found["available"], found["reason"], found["versions"]) == (False, "unfree", [])
    found = await server.json("packages/later")
    assert (found["kind"], found["available"], found["outputs"]) == (None, None, {})


async def test_an_image_definition_is_described_with_its_contents(server: Server) -> None:
    found = await server.json("packages/images.web")
    assert (found["kind"], found["description"]) == ("definition", "serves pages")
    assert found["contents"] == [{"name": "hello", "version": "2.10"}]


async def test_an_unknown_package_has_near_names(server: Server) -> None:
    (error,) = (await server.json("packages/glt", 404))["errors"]
    assert error["code"] == "NAME_UNKNOWN"
    assert error["message"].startswith("the package set has no glt; did you mean git")
    assert len((await server.json("packages/" + "x" * 60_000, 404))["errors"][0]["message"]) < 400


async def test_the_progress_of_the_index_has_what_failed(server: Server) -> None:
    attribute, reason = FAILURE
    failures = [{"attribute": attribute, "reason": reason}]
    assert await server.json("index") == {**INDEX, "failures": failures}
    server.index.progress = Progress("r1", 1, 1, (("x", "y" * 100_000),), 1, is_complete=True)
    (failure,) = (await server.json("index"))["failures"]
    assert len(failure["reason"]) == 500


async def test_the_answer_of_a_search_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tuple(f"{n:064}" for n in range(200))
    large = [
        FoundPackage(f"p{n}", "a" * 255, "1" * 256, "d" * 4096, programs, "r" * 9999) for n in range(200)
    ]

    async def names(tag: str) -> PackageSearch:  # noqa: ARG001 -- of every tag
        return PackageSearch(large)

    monkeypatch.setattr(server.index, "names", names)
    answer = await server.ask("packages", query={"limit": "100"})
    assert isinstance(answer, BytesResponse)
    assert len(json.loads(answer.content)["packages"]) == 100
    assert answer.length < 512 * 1024


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
    for path in ("packages/git", "index"):
        assert (await server.ask(path)).status == 503


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
    for path, tag, is_ignored in (
        ("images/shell/git", "latest", False),
        ("images/shell/git:v1", "v1", False),
        ("images/shell/git:v1", "latest", True),
    ):
        server.descriptions.ignores_tags = is_ignored
        document = await server.json(path)
        assert (document["name"], document["tag"]) == ("shell/git", tag)
        assert document["pin"] == {"revision": PIN.revision, "url": PIN.url, "tag": PIN.revision}
        (image,) = document["platforms"]
        assert (image["platform"], image["size"]) == ("linux/amd64", 8)
        assert image["layers"][0] == {"digest": "sha256:1", "size": 7, "packages": ["git"]}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("amd64/shell/git:v1", ("amd64/shell/git", "v1", "sha256:0")),
        ("amd64/git", ("amd64/git", "latest", "sha256:0")),
        # Not built yet; and for several platforms, which have a digest together.
        ("amd64/htop", ("amd64/htop", "latest", None)),
        ("git", ("git", "latest", None)),
    ],
)
async def test_a_stored_image_has_a_digest(
    server: Server, image: str, expected: tuple[str, str, str | None]
) -> None:
    document = await server.json(f"digests/{image}")
    assert tuple(document.values()) == expected
    assert server.images.begun == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("digests/Git", (400, "NAME_INVALID")),
        (f"digests/git:sha256-{'0' * 64}", (404, "MANIFEST_UNKNOWN")),
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


@pytest.mark.security
@pytest.mark.parametrize("path", ["packages", "packages/git", "index", "images/git"])
async def test_answers_about_packages_are_written_in_turns_off_the_event_loop(
    path: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    loop, begun, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(document: Any) -> bytes:  # noqa: ANN401 -- JSON is anything
        threads.append(threading.get_ident())
        loop.call_soon_threadsafe(begun.set)
        if threads[-1] != threading.main_thread().ident:
            may_end.wait(60)
        return json_content(document)

    monkeypatch.setattr("nixery.server.api.json_content", slow)
    answers = [asyncio.ensure_future(server.json(path, q="git")) for _ in range(3)]
    try:
        await begun.wait()
        await asyncio.to_thread(int)  # the threads have begun all earlier calls
        assert len(threads) == 1
    finally:
        may_end.set()
    first, second, third = await asyncio.gather(*answers)
    assert first == second == third
    assert threading.main_thread().ident not in threads


@pytest.mark.security
async def test_searches_do_not_block_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    search = PackageSearch.search

    def counted(names: PackageSearch, text: str, limit: int) -> Sequence[FoundPackage]:
        threads.append(threading.get_ident())
        return search(names, text, limit)

    monkeypatch.setattr(PackageSearch, "search", counted)
    await server.ask("packages", query={"q": "git"})
    assert len(threads) == 1
    assert threads[0] != threading.main_thread().ident


async def test_names_are_checked(server: Server) -> None:
    answer = await server.json("names", q="git GTI slack set.member gti")
    assert answer["names"] == [
        {"name": "git", "exists": True, "reason": None, "near_names": []},
        {"name": "gti", "exists": False, "reason": None, "near_names": ["git"]},
        {"name": "slack", "exists": True, "reason": "unfree", "near_names": []},
        {"name": "set.member", "exists": None, "reason": None, "near_names": []},
    ]
    assert (await server.json("names"))["names"] == []


@pytest.mark.security
async def test_few_names_are_checked_and_fewer_get_near_names(server: Server) -> None:
    answer = await server.json("names", q=" ".join(f"gi{number}" for number in range(1000)))
    assert len(answer["names"]) == 100
    assert sum(bool(name["near_names"]) for name in answer["names"]) <= 5


async def test_a_search_and_an_unknown_package_name_the_same_near_names(server: Server) -> None:
    found = await server.json("packages", q="gitt")
    error = (await server.json("packages/gitt", 404))["errors"][0]["message"]
    near = await server.index.near_names("latest", "gitt")
    assert [package["name"] for package in found["packages"]] == list(near)
    assert error.endswith(f"did you mean {' or '.join(near)}?")
