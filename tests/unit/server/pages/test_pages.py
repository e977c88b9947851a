"""The pages, with made-up descriptions and builds in a history."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
from collections.abc import Mapping
from typing import cast

import pytest

import nixery
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.events import (
    Build,
    Evaluated,
    Failed,
    Grouped,
    LayerPacked,
    LayerReused,
    Reused,
    Started,
    Stored,
)
from nixery.builds.history import BuildHistory
from nixery.builds.image_closure import ClosurePath, ClosureRoot, ImageClosure
from nixery.builds.index_records import Progress
from nixery.builds.package_index import PackageIndex
from nixery.errors import (
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildFailed,
    NixeryError,
    NixTimedOut,
    PackagesUnavailable,
    PlatformFailed,
    Reason,
    ShuttingDown,
    UnavailablePackage,
)
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, Layer, MediaType
from nixery.request_context import Client
from nixery.server import published_packages
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.errors import errors_body
from nixery.server.http import AnswerWriter, BytesResponse, Request
from nixery.server.pages.pages import Pages
from nixery.server.pages.templating import Templates, breakable
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.published_images import PublishedImages
from nixery.server.published_packages import PublishedPackages
from nixery.storage.catalogue import Catalogue
from tests.unit.server.conftest import PIN, FakeDescriptions, FakeIndex


class FakeCatalogue:
    """The names of stored images."""

    def __init__(self, known: list[str]) -> None:
        self._known = known

    async def names(self, after: str, limit: int) -> list[str]:
        return sorted(name for name in self._known if name > after)[:limit]


class Site:
    """The pages of a server with one failed build."""

    def __init__(self, history: BuildHistory, *, public: bool) -> None:
        (request,) = requests_for("shell/git", (AMD64,))
        self.build = Build.of(request, PIN)
        for event in (Started(), Failed(NixeryError("no <compiler>"))):
            history.observe(self.build, event)
        published = PublishedBuilds(history, FollowerBounds(1, 1), public=public)
        self.index = FakeIndex()
        packages = PublishedPackages(cast("PackageIndex", self.index))
        self.descriptions = FakeDescriptions(public=public)
        descriptions = cast("ImageDescriptions", self.descriptions)
        self.names = ["git", "htop", "shell/git"]
        images = PublishedImages(cast("Catalogue", FakeCatalogue(self.names)), public=public)
        cancellation = BuildCancellation(cast("BuildCoordinator", self), published, None, private=True)
        self.pages = Pages(published, cancellation, packages, descriptions, images, (AMD64,), AnswerWriter())

    def requesters(self, build: str) -> tuple[Client, ...]:  # as a ``BuildCoordinator``
        assert build
        return ()

    async def get(
        self,
        path: str,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[BytesResponse, str]:
        answer = await self.answer(path, headers, method=method, query=query)
        return answer, answer.content.decode()

    async def answer(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
    ) -> BytesResponse:
        answer = await self.pages.answer(
            Request(method, path, {"host": "registry.example", **(headers or {})}, query or {})
        )
        assert isinstance(answer, BytesResponse)
        return answer


@pytest.fixture
async def site(history: BuildHistory) -> Site:
    return Site(history, public=True)


async def test_the_first_page_lists_builds_and_shows_how_to_pull(site: Site) -> None:
    answer, page = await site.get("/")
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "Recent failures" in page
    assert f"/builds/{site.build.id}" in page
    for word in (
        "docker",
        "podman",
        "kubectl",
        "registry.example/<wbr>shell/<wbr>git:latest",
        "--tls-verify=false",
    ):
        assert word in page


async def test_the_page_of_a_build_shows_its_error_escaped(site: Site) -> None:
    answer, page = await site.get(f"/builds/{site.build.id}")
    assert answer.status == 200
    assert "no &lt;compiler&gt;" in page
    assert 'data-stage="evaluate" class="failed"' in page
    assert 'href="/images/shell/git"' in page


async def test_the_page_of_a_running_build_says_what_runs_and_what_is_left(history: BuildHistory) -> None:
    site = Site(history, public=True)
    (request,) = requests_for("git", (AMD64,))
    build = Build.of(request, PIN, tag="v1")
    gcc = f"{'a' * 32}-gcc-7.3.0.drv"
    for event in (
        Started(),
        Evaluated(()),
        Fetching(120_000_000, 560_000_000, 41, 84),
        Building((gcc,), 3, 12),
    ):
        history.observe(build, event)
    _, page = await site.get(f"/builds/{build.id}")
    assert "Building <b>gcc-7.3.0</b> for" in page
    assert "41 of 84 paths, 120 of 560 MB" in page
    assert "3 of 12" in page
    assert 'data-empty="gcc-7.3.0 has written nothing so far."' in page
    assert "a" * 32 not in page
    history.observe(build, Failed(BuildFailed(gcc, ("checking", "no compiler"), "failed")))
    _, page = await site.get(f"/builds/{build.id}")
    assert page.index("gcc-7.3.0 did not build") < page.index("no compiler") < page.index("<dl")
    assert 'href="/images/git:v1"' in page


async def test_the_log_of_a_build_is_a_text(history: BuildHistory) -> None:
    site = Site(history, public=True)
    history.observe(site.build, LogLines((("", "<b>one</b>"), ("", "two\u202e")), dropped=3))
    answer, text = await site.get(f"/builds/{site.build.id}/log")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert text == "[3 earlier lines are not kept]\n<b>one</b>\ntwo\\u202e\n"
    answer, _ = await site.get(f"/builds/{'0' * 20}/log")
    assert answer.status == 404
    answer, text = await Site(history, public=False).get(f"/builds/{site.build.id}/log")
    assert (answer.status, "one" in text) == (403, False)


async def test_builds_that_are_not_public_have_neither_names_nor_errors(history: BuildHistory) -> None:
    site = Site(history, public=False)
    for path in ("/", f"/builds/{site.build.id}"):
        _, page = await site.get(path)
        assert "hidden" in page
        assert "compiler" not in page
        assert page.count("shell/<wbr>git") == (4 if path == "/" else 0)  # the example of the first page


async def test_the_page_of_a_stored_image_shows_packages_and_layers(site: Site) -> None:
    answer, page = await site.get("/images/shell/git:v1")
    assert answer.status == 200
    for word in (
        "GPL-2.0-only",
        "registry.example/<wbr>shell/<wbr>git:v1",
        'aria-label="Layer 1, 7 B: git"',
        "registry.example/<wbr>shell/<wbr>git@sha256:0<",
        PIN.url,
    ):
        assert word is not None
        assert word in page
    assert "Not built yet" not in page


async def test_the_page_of_an_image_that_was_not_built_offers_to_build_it(site: Site) -> None:
    answer, page = await site.get("/images/shell/later")
    assert answer.status == 200
    assert "Not built yet" in page
    assert 'data-name="shell/later" data-tag="latest"' in page


async def test_the_page_of_an_image_of_an_unknown_package_says_so_with_near_names(site: Site) -> None:
    answer, page = await site.get("/images/shell/gitt/slack:v1")
    assert answer.status == 404
    assert "The package set has no package <b>gitt</b>." in page
    assert '<a href="/images/shell/git/slack:v1">git</a>' in page
    assert "is not available: unfree" in page
    assert "Not built yet" not in page
    assert "docker" not in page
    assert 'id="build"' not in page


async def test_a_prefix_behind_a_package_is_no_misspelling(site: Site) -> None:
    _, page = await site.get("/images/later/shell:v1")
    assert "<b>shell</b> has its meaning at the beginning of a name alone" in page
    assert 'href="/images/shell/later:v1"' in page
    assert "Did you mean" not in page


async def test_the_page_of_an_image_whose_last_build_failed_leads_to_that_build(
    history: BuildHistory,
) -> None:
    site = Site(history, public=True)
    (request,) = requests_for("shell/later", (AMD64,))
    build = Build.of(request, PIN)
    for event in (Started(), Failed(NixeryError("no compiler"))):
        history.observe(build, event)
    _, page = await site.get("/images/shell/later")
    assert f'The last build failed just now: <a href="/builds/{build.id}">no compiler</a>' in page
    history.observe(Build.of(request, PIN), Started())
    _, page = await site.get("/images/shell/later")
    assert "The last build failed" not in page


async def test_an_image_page_without_answers_about_names_is_a_page(site: Site) -> None:
    answer, page = await site.get("/images/set.member")
    assert (answer.status, "Not built yet" in page) == (200, True)
    answer, page = await site.get("/images/later:v2")  # the fake's list of names fails for this tag
    assert (answer.status, "Not built yet" in page) == (200, True)


async def test_the_page_of_an_image_offers_its_commit(site: Site) -> None:
    _, page = await site.get("/images/shell/git:v1")
    assert f'id="pin" href="/images/shell/git:{PIN.revision}" data-tag="v1"' in page
    _, page = await site.get(f"/images/shell/git:{PIN.revision}")
    assert 'id="pin"' not in page


async def test_the_packages_of_an_image_have_links(site: Site) -> None:
    _, page = await site.get("/images/shell/git:v1")
    assert '<a href="/packages/git-full?tag=v1">git</a>' in page
    _, page = await site.get("/images/shell/git")
    assert '<a href="/packages/git-full">git</a>' in page


async def test_the_page_of_a_package_has_its_versions_and_how_to_pull_it(site: Site) -> None:
    answer, page = await site.get("/packages/git")
    assert answer.status == 200
    for word in (
        "registry.example/<wbr>shell/<wbr>git:latest",
        '<a href="https://git.example/" rel="noreferrer nofollow">',
        "GPL-2.0-only",
        "/nix/store/0-git",
        '<code class="break">git:latest</code>',
        f'<a href="/packages/git?tag={"0" * 40}" title="{"0" * 40}">{"0" * 12}</a>',
    ):
        assert word in page
    _, page = await site.get("/packages/later")
    assert "not evaluated yet" in page
    assert "8,249 of 31,293 packages are described" in page


async def test_the_page_of_an_unavailable_package_says_why(site: Site) -> None:
    _, page = await site.get("/packages/slack")
    assert "Not available: unfree" in page
    assert "docker" not in page
    assert "a &lt;b&gt;chat&lt;/b&gt;" in page
    # A script is no link.
    assert 'href="javascript' not in page
    assert "javascript:alert(1)" in page


async def test_an_image_definition_has_a_page(site: Site) -> None:
    _, page = await site.get("/packages/images.web", query={"tag": "v1"})
    for word in (
        "Image definition",
        "serves pages",
        "registry.example/<wbr>images.web:v1",
        ">hello</th><td>2.10",
    ):
        assert word in page


async def test_packages_are_found_without_a_script(site: Site) -> None:
    _, page = await site.get("/packages", query={"q": "tool", "tag": "v1"})
    assert '<a href="/packages/git?tag=v1">git</a>' in page
    assert "another name of git" in page
    _, page = await site.get("/packages", query={"q": "slack"})
    assert '<span class="why">unfree</span>' in page
    _, page = await site.get("/packages", query={"q": '"><script>'})
    assert "<script>" not in page
    assert "No package has a similar name" in page


async def test_a_page_explains_the_meta_packages(site: Site) -> None:
    answer, page = await site.get("/meta-packages")
    assert answer.status == 200
    assert "programs of &lt;pipelines&gt;" in page
    assert '<code title="2.47">git</code>' in page
    assert "<code>bash</code>" in page
    assert "incomplete: it stands for strace" in page
    assert "not evaluated yet" in page
    assert '<a href="/meta-packages">' in (await site.get("/"))[1]
    _, page = await site.get("/packages", query={"tag": "v1"})
    assert '<a href="/meta-packages?tag=v1">' in page


async def test_attributes_that_do_not_evaluate_are_listed(site: Site) -> None:
    _, page = await site.get("/packages")
    assert "attribute &#39;x&#39; &lt;missing&gt;" in page
    assert "101 in this state of the package set, of which these are the first 1" in page


async def test_a_page_does_not_wait_long_for_a_listing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_packages, "_LISTING_TIMEOUT", 0)
    site.index.listed.clear()
    for path in ("/packages", "/packages/git"):
        answer, page = await site.get(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert "Listing the packages" in page


@pytest.mark.parametrize(
    ("path", "status", "title"),
    [
        ("/builds/0123", 404, "No such build"),
        ("/packages/none", 404, "No such package"),
        ("/images/Not a name", 400, "Not a valid image name"),
        (f"/images/git:sha256-{'0' * 64}", 404, "No such image"),
        ("/static/none", 404, "Not found"),
    ],
)
async def test_an_error_has_a_page(site: Site, path: str, status: int, title: str) -> None:
    answer, page = await site.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert f"<h1>{title}</h1>" in page


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ({"packages": " Git, jq/htop", "shell": "1"}, "/images/shell/git/jq/htop:latest"),
        ({"packages": "git", "platform": "arm64", "tag": "v1"}, "/images/arm64/git:v1"),
    ],
)
async def test_the_form_leads_to_the_page_of_the_composed_image(
    site: Site, query: dict[str, str], location: str
) -> None:
    answer, _ = await site.get("/images", query=query)
    assert (answer.status, answer.headers["Location"]) == (303, location)


@pytest.mark.parametrize("packages", ["", " , ", "<script>"])
async def test_a_form_without_a_valid_name_is_an_error(site: Site, packages: str) -> None:
    answer, page = await site.get("/images", query={"packages": packages})
    assert answer.status == 400
    assert "<script>" not in page


async def test_static_files_have_a_type(site: Site) -> None:
    answer, content = await site.get("/static/site.css")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "{" in content


async def test_pages_load_files_that_browsers_may_keep(site: Site) -> None:
    _, page = await site.get("/")
    (address,) = re.findall(r'href="(/static/site\.[0-9a-f]{16}\.css)"', page)
    answer, content = await site.get(address)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    # The page of another version, during a rollout.
    other, current = await site.get(f"/static/site.{'0' * 16}.css")
    assert (other.headers["Cache-Control"], current) == ("no-cache", content)


@pytest.mark.parametrize("path", ["/", "/static/site.js", "/packages", "/help"])
async def test_pages_are_compressed_for_clients_that_accept_it(site: Site, path: str) -> None:
    plain, page = await site.get(path)
    assert plain.headers["Vary"] == "Accept-Encoding"
    small = await site.answer(path, {"accept-encoding": "br, gzip;q=0.8"})
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.content).decode() == page
    assert len(small.content) < len(plain.content) / 2
    assert "Content-Encoding" not in (await site.answer(path, {"accept-encoding": "gzip;q=0"})).headers


@pytest.mark.parametrize(
    ("path", "image"),
    [
        ("/shell/git:v1", "/images/shell/git%3Av1"),
        ("/git", "/images/git"),
        ("/v2/git/none", None),
        ("/<script>", None),
        ("/git:-", None),
    ],
)
async def test_a_person_gets_errors_as_pages(site: Site, path: str, image: str | None) -> None:
    request = Request("GET", path, {"accept": "text/html"})
    error = errors_body(404, "UNSUPPORTED", "no <such> path", headers={"Allow": "GET"})
    answer = site.pages.error_page(request, error)
    page = answer.content.decode()
    assert (answer.status, answer.headers["Allow"]) == (404, "GET")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<h1>Not found</h1>" in page
    assert "no &lt;such&gt; path" in page
    assert ('href="/images/' in page, f'href="{image}"' in page) == (image is not None,) * 2
    assert "<script>" not in page


async def test_a_program_gets_errors_as_json(site: Site) -> None:
    answer, document = await site.get("/none")
    assert (answer.status, "UNSUPPORTED" in document) == (404, True)


async def test_pages_are_read_only(site: Site) -> None:
    answer, _ = await site.get("/", method="POST")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.security
@pytest.mark.parametrize(
    ("path", "query"),
    [("/packages", {"q": "git"}), ("/packages", {}), ("/packages/git", {}), ("/images/git", {})],
)
async def test_pages_with_texts_of_authors_are_written_in_turns_off_the_event_loop(
    path: str, query: Mapping[str, str], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    loop, begun, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    response = Templates.response

    def slow(templates: Templates, template: str, status: int = 200, **values: object) -> BytesResponse:
        threads.append(threading.get_ident())
        loop.call_soon_threadsafe(begun.set)
        if threads[-1] != threading.main_thread().ident:
            may_end.wait(60)
        return response(templates, template, status, **values)

    monkeypatch.setattr(Templates, "response", slow)
    pages = [asyncio.ensure_future(site.get(path, query=query)) for _ in range(3)]
    try:
        await begun.wait()
        await asyncio.to_thread(int)  # the threads have begun all earlier calls
        assert len(threads) == 1
    finally:
        may_end.set()
    assert [answer.status for answer, _ in await asyncio.gather(*pages)] == [200, 200, 200]
    assert threading.main_thread().ident not in threads


async def test_a_search_for_a_misspelt_name_offers_near_names(site: Site) -> None:
    _, page = await site.get("/packages", query={"q": "itfull"})
    assert '<a href="/packages/gitfull">gitfull</a>?</p>' in page
    assert "Did you mean" in page
    # The results begin with what was meant.
    for text in ("git", "gitfu", "tool", "a tool", "zzz"):
        _, page = await site.get("/packages", query={"q": text})
        assert "Did you mean" not in page


def _closure() -> ImageClosure:
    paths = [
        ClosurePath(path=f"{letter * 32}-{name}", size=size, layer=layer, references=references)
        for letter, name, size, layer, references in (
            ("a", "git-2.47", 900, 1, [1]),
            ("b", "<b>zlib</b>", 100, 1, []),
            ("c", "bash-5", 5000, 2, []),
        )
    ]
    roots = [
        ClosureRoot(component="git-full", name="git", version="2.47", requested=True, paths=[0]),
        ClosureRoot(component=".shell", name="bash", version="5", requested=False, paths=[2]),
    ]
    return ImageClosure(paths, roots)


async def test_the_page_of_an_image_says_what_each_package_takes_and_why_paths_are_there(site: Site) -> None:
    _, page = await site.get("/images/shell/git:v1")
    assert "Only for it" not in page
    site.descriptions.closure = _closure()
    _, page = await site.get("/images/shell/git:v1")
    assert page.index(">Packages<") < page.index(">Config<") < page.index(">Layers, by compressed size<")
    assert '<td class="number" data-label="Only for it">1.0 kB</td>' in page
    assert f'<a href="?why={"a" * 32}-git-2.47">git-2.47</a>' in page
    assert "<b>zlib</b>" not in page
    assert "FROM registry.example/shell/git:v1" in page
    answer, page = await site.get("/images/shell/git:v1", query={"why": f"{'b' * 32}-<b>zlib</b>"})
    assert answer.status == 200
    assert "Why is &lt;b&gt;zlib&lt;/b&gt; here?" in page
    assert "you asked for git-full" in page
    assert 'href="/images/shell/git:v1#layer-1-1"' in page
    answer, page = await site.get("/images/shell/git:v1", query={"why": "none"})
    assert (answer.status, "No such store path" in page) == (404, True)
    answer, page = await site.get("/images/later", query={"why": "none"})
    assert answer.status == 404


@pytest.mark.security
async def test_a_planted_config_is_shown_whatever_its_values_are(site: Site) -> None:
    """A field without a value made the page a 500."""
    site.descriptions.config = {
        "Env": None,
        "Cmd": [None],
        "Labels": None,
        "a": {"b": None},
        "User": 7,
        "x": True,
    }
    answer, _ = await site.get("/images/shell/git:v1")
    assert answer.status == 200


async def test_the_licence_column_is_there_where_a_licence_is_known(site: Site) -> None:
    _, page = await site.get("/images/shell/git:v1")
    assert ">Licence<" in page
    site.descriptions.licences = ()
    _, page = await site.get("/images/shell/git:v1")
    assert ">Licence<" not in page
    assert "unknown" not in page


async def test_the_map_tells_shared_layers_from_others(site: Site) -> None:
    site.descriptions.compared, site.descriptions.shared = 2, 1
    _, page = await site.get("/images/shell/git:v1")
    assert 'class="tile shared" href="#layer-1-1"' in page
    assert "Layer 1, 7 B, also in 1 other image: git" in page
    site.descriptions.shared = 0
    _, page = await site.get("/images/shell/git:v1")
    assert "Layer 1, 7 B, in this image alone: git" in page


async def test_the_first_page_describes_the_package_set(site: Site) -> None:
    _, page = await site.get("/")
    for word in ("Debian &lt;12&gt;", PIN.url, PIN.revision[:12], "14 Nov 2023", "31,293", "8,249 described"):
        assert word is not None
        assert word in page
    site.index.listed.clear()
    _, page = await site.get("/")
    assert "looks its state up at the first request" in page


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1:8080", True), ("registry.example", False)])
async def test_lines_that_no_cluster_can_use_are_said_to_be_local(site: Site, host: str, local: bool) -> None:  # noqa: FBT001
    _, page = await site.get("/", headers={"host": host})
    assert ("NIXERY_PUBLIC_URL" in page) is local
    assert f"{host}/<wbr>shell/<wbr>git:latest" in page


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PackagesUnavailable((UnavailablePackage("gti", Reason.MISSING),)), "no such package"),
        (PackagesUnavailable((UnavailablePackage("slack", Reason.UNFREE),)), "package not available"),
        (BuildFailed("x.drv", ("cc: error",), "failed"), "build error"),
        (PlatformFailed("linux/arm64", BuildFailed("x.drv", (), "failed")), "build error"),
        (ShuttingDown(), "server was stopped"),
    ],
)
async def test_the_list_of_builds_gives_reasons(
    history: BuildHistory, error: NixeryError, reason: str
) -> None:
    site = Site(history, public=True)
    (request,) = requests_for("htop", (AMD64,))
    build = Build.of(request, PIN)
    for event in (Started(), Failed(error)):
        history.observe(build, event)
    for path in ("/", "/builds"):
        assert f'<span class="why">{reason}</span>' in (await site.get(path))[1]
    report = history.get(build.id)
    assert report is not None
    assert report.failure is not None
    _, page = await site.get("/builds", query={"why": report.failure, "state": "failed"})
    assert build.id in page
    assert site.build.id not in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, True),
        ({"q": "GIT"}, True),
        ({"q": "amd64/shell"}, True),
        ({"q": "htop"}, False),
        ({"state": "failed"}, True),
        ({"state": "done"}, False),
        ({"state": "<script>"}, True),
        ({"why": "other"}, True),
        ({"why": "<script>"}, False),
        ({"page": "9999"}, True),
        ({"page": "-1"}, True),
    ],
)
async def test_builds_are_filtered(site: Site, query: Mapping[str, str], found: bool) -> None:  # noqa: FBT001
    answer, page = await site.get("/builds", query=query)
    assert answer.status == 200
    assert (f"/builds/{site.build.id}" in page) is found
    assert "<script>" not in page


async def test_a_list_of_many_builds_has_pages(site: Site, history: BuildHistory) -> None:
    (request,) = requests_for("htop", (AMD64,))
    for _ in range(50):
        history.observe(Build.of(request, PIN), Started())
    _, page = await site.get("/builds")
    assert "1 to 50 of 51" in page
    assert 'rel="next" href="/builds?page=2"' in page
    _, page = await site.get("/builds", query={"page": "2", "q": "t"})
    assert "51 to 51 of 51" in page
    assert 'rel="prev" href="/builds?q=t"' in page


async def test_builds_that_are_not_public_have_no_reasons(history: BuildHistory) -> None:
    site = Site(history, public=False)
    _, page = await site.get("/builds", query={"why": "other"})
    assert site.build.id not in page
    _, page = await site.get("/builds", query={"q": "git"})
    assert site.build.id not in page
    _, page = await site.get("/builds")
    assert site.build.id in page
    assert '<span class="why">' not in page


async def test_stored_images_are_listed(site: Site, history: BuildHistory) -> None:
    (request,) = requests_for("shell/git", (AMD64,))
    build = Build.of(request, PIN, tag="v1")
    digest = Digest.of(b"manifest")
    big, small = (
        Layer(Descriptor(MediaType.OCI_LAYER_GZIP, digest, size), digest, packages=())
        for size in (1_200_000, 300_000)
    )
    for event in (
        Started(),
        Evaluated(()),
        Grouped(2),
        LayerPacked(big),
        LayerReused(small),
        Stored(digest, 1),
    ):
        history.observe(build, event)
    # A later request found the image in the storage, and packed nothing.
    later = Build.of(request, PIN, tag="v1")
    history.observe(later, Started())
    history.observe(later, Reused(digest))
    _, page = await site.get("/images")
    assert re.search(r'href="/images/shell/git:v1">shell/<wbr>git</a><span class="break of">:v1</span>', page)
    assert '<td class="number">1.5 MB</td>' in page
    assert '<a href="/images/htop">htop</a>' in page
    # Copied as a whole; the digest alone is in sight.
    assert f'<span class="unseen">registry.example/shell/git@</span>{digest}</code>' in page
    _, page = await site.get("/images", query={"q": "shell/"})
    assert "/images/shell/git" in page
    assert "/images/htop" not in page
    # A package further behind, too; part of a package is no beginning of one.
    _, page = await site.get("/images", query={"q": "gi"})
    assert 'href="/images/git"' in page
    assert "/images/shell/git" in page
    assert "/images/htop" not in page
    for text in ("nothing", "it", '"><script>'):
        _, page = await site.get("/images", query={"q": text})
        assert "begins like that" in page
        assert "<script>" not in page


async def test_a_list_of_many_images_has_pages(site: Site) -> None:
    site.names[:] = [f"a{number:03}" for number in range(120)]
    seen: list[str] = []
    query: dict[str, str] = {"q": "a"}
    while query:
        _, page = await site.get("/images", query=query)
        seen += re.findall('href="/images/(a[0-9]+)"', page)
        link = re.search(r'rel="next" href="/images\?q=a&amp;after=([a-z0-9]+)"', page)
        query = {"q": "a", "after": link[1]} if link else {}
    assert seen == site.names


async def test_images_that_are_not_public_are_not_listed(history: BuildHistory) -> None:
    _, page = await Site(history, public=False).get("/images")
    assert "not public" in page
    assert "htop" not in page


async def test_help_explains_the_words_that_pages_link(site: Site) -> None:
    _, help_page = await site.get("/help")
    anchors = set(re.findall(r'id="([a-z-]+)"', help_page))
    assert anchors >= {"pin", "state", "set", "closure", "layer"}
    linked: set[str] = set()
    for path in ("/", "/images", "/builds", f"/builds/{site.build.id}", "/images/shell/git", "/packages/git"):
        linked |= set(re.findall(r'href="/help#([a-z-]+)"', (await site.get(path))[1]))
    assert {"set", "state", "digest", "pin", "closure", "layer"} <= linked <= anchors


async def test_the_api_has_a_page(site: Site) -> None:
    answer, page = await site.get("/docs")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    description = json.loads((await site.get("/openapi.json"))[1])
    for path in description["paths"]:
        assert str(breakable(path)) in page
    assert "<code>UNSUPPORTED</code>" in page
    assert "HEAD answers like GET" in page


async def test_the_footer_has_the_version(site: Site) -> None:
    assert f"nixery {nixery.__version__}" in (await site.get("/help"))[1]


async def test_the_page_of_an_image_says_that_a_directory_ignores_tags(site: Site) -> None:
    _, page = await site.get("/images/shell/git:2.7")
    assert "This server has no tag" not in page
    assert "shell/<wbr>git:2.7" in page
    site.descriptions.ignores_tags = True
    _, page = await site.get("/images/shell/git:2.7")
    assert "This server has no tag <b>2.7</b>" in page
    assert 'href="/packages?q=git"' in page
    assert "git:2.7" not in page
    assert "registry.example/<wbr>shell/<wbr>git:latest" in page
    _, page = await site.get("/images/shell/git")
    assert "This server has no tag" not in page


async def test_the_page_of_a_package_ignores_tags_as_its_source_does(site: Site) -> None:
    _, page = await site.get("/packages/git", query={"tag": "v1"})
    assert "git:v1" in page
    site.descriptions.ignores_tags = True
    _, page = await site.get("/packages/git", query={"tag": "v1"})
    assert "git:v1" not in page
    assert "git:latest" in page


async def test_the_page_of_a_package_leads_to_the_composer_and_has_the_size_of_its_image(
    history: BuildHistory,
) -> None:
    site = Site(history, public=True)
    _, page = await site.get("/packages/git")
    assert 'href="/?packages=git&amp;shell=1#compose"' in page
    assert "to download" not in page
    # One platform is that of the index, and says nothing.
    assert "Platforms" not in page
    (request,) = requests_for("shell/git", (AMD64,))
    layer = Layer(Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(b"1"), 78_000_000), Digest.of(b"2"), ())
    build = Build.of(request, PIN)
    for event in (Started(), Evaluated(()), Grouped(1), LayerPacked(layer), Stored(Digest.of(b"3"), 1)):
        history.observe(build, event)
    _, page = await site.get("/packages/git")
    assert "shell/git takes 78.0 MB to download." in page


async def test_the_page_of_an_unknown_package_searches_and_links_near_names(site: Site) -> None:
    answer, page = await site.get("/packages/gitful")
    assert answer.status == 404
    assert "The package set has no package gitful. Did you mean" in page
    assert '<a href="/packages/gitfull">gitfull</a>?' in page
    assert 'name="q" type="text" value="gitful"' in page


async def test_a_search_says_that_descriptions_are_missing(site: Site) -> None:
    note = "packages can be missing here"
    _, page = await site.get("/packages", query={"q": "git"})
    assert note in page
    site.index.progress = Progress("r1", 1, 1, (), 0, is_complete=True)
    _, page = await site.get("/packages", query={"q": "git"})
    assert note not in page


async def test_the_page_of_a_failed_build_says_how_long_the_failure_is_repeated(
    history: BuildHistory,
) -> None:
    site = Site(history, public=True)
    site.pages._remembered = 30
    (request,) = requests_for("git", (AMD64,))
    shown = {}
    for error in (BuildFailed("a.drv", (), "builder failed"), BuildCancelled("an administrator")):
        build = Build.of(request, PIN)
        for event in (Started(), Evaluated(()), Failed(error)):
            history.observe(build, event)
        _, page = await site.get(f"/builds/{build.id}")
        shown[type(error)] = "For about 30 s, the server repeats this failure" in page
    assert shown == {BuildFailed: True, BuildCancelled: False}


async def test_the_heading_of_a_build_that_took_too_long_says_so(history: BuildHistory) -> None:
    site = Site(history, public=True)
    (request,) = requests_for("git", (AMD64,))
    headings = []
    for error in (NixTimedOut("a-1.drv", 8), BuildDeadlineExceeded(8)):
        build = Build.of(request, PIN)
        for event in (Started(), Evaluated(()), Failed(error)):
            history.observe(build, event)
        _, page = await site.get(f"/builds/{build.id}")
        headings += re.findall(r'<h2 id="failure-title">(.*?)</h2>', page)
        assert "which the operator of the server can raise" in page
    assert headings == ["a-1 took too long", "The build took too long"]
