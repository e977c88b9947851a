"""The pages, with made-up descriptions and builds in a history."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import cast

import pytest

from nixery.builds.descriptions import ImageDescriptions
from nixery.builds.events import Build, Evaluated, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.builds.package_index import PackageIndex
from nixery.errors import BuildFailed, NixeryError
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.server import published_packages
from nixery.server.http import AnswerWriter, BytesResponse, Request
from nixery.server.pages.pages import Pages
from nixery.server.pages.templating import Templates
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.published_packages import PublishedPackages
from tests.unit.server.conftest import PIN, FakeDescriptions, FakeIndex


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
        descriptions = cast("ImageDescriptions", FakeDescriptions(public=public))
        self._pages = Pages(published, packages, descriptions, (AMD64,), AnswerWriter())

    async def get(
        self,
        path: str,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[BytesResponse, str]:
        answer = await self._pages.answer(
            Request(method, path, {"host": "registry.example", **(headers or {})}, query or {})
        )
        assert isinstance(answer, BytesResponse)
        return answer, answer.content.decode()


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
        assert page.count("shell/<wbr>git") == (3 if path == "/" else 0)  # the example of the first page


async def test_the_page_of_a_stored_image_shows_packages_and_layers(site: Site) -> None:
    answer, page = await site.get("/images/shell/git:v1")
    assert answer.status == 200
    for word in (
        "GPL-2.0-only",
        "registry.example/<wbr>shell/<wbr>git:v1",
        'aria-label="Layer 1, 7 B: git"',
        PIN.url,
    ):
        assert word is not None
        assert word in page
    assert "Not built yet" not in page


async def test_the_page_of_an_image_that_was_not_built_offers_to_build_it(site: Site) -> None:
    answer, page = await site.get("/images/htop")
    assert answer.status == 200
    assert "Not built yet" in page
    assert 'data-name="htop" data-tag="latest"' in page


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
    assert "{" in content


async def test_an_unknown_path_is_a_page_for_browsers_and_json_for_programs(site: Site) -> None:
    answer, page = await site.get("/none", headers={"accept": "text/html,*/*"})
    assert (answer.status, "<h1>Not found</h1>" in page) == (404, True)
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
