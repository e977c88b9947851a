"""The pages in a real browser."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Dialog, expect

from tests.browser.conftest import OpenPage, Shoot
from tests.support.nix import wait_until
from tests.support.server import Server

_FIXED = ("/builds", "/images", "/help", "/docs")

# Those below 24 pixels. Links within sentences may be smaller, and so may the tiles of a map, whose area is the size of
# a layer: the table below has the same rows (WCAG 2.5.8).
_SMALL_TARGETS = """
    [...document.querySelectorAll("a, button, input, select, summary")].filter((target) => {
      const { width, height } = target.getBoundingClientRect();
      return width > 1 && height > 1 && Math.min(width, height) < 24 && !target.matches("p a, li a, .tile");
    }).map((target) => target.outerHTML)
"""


def test_a_name_is_composed_and_copied(open_page: OpenPage, server: Server, built: str, shoot: Shoot) -> None:
    page = open_page("/")
    box = page.get_by_role("combobox", name="Packages")
    box.press_sequentially("alp")
    options = page.get_by_role("listbox", name="Packages").get_by_role("option")
    expect(options.first).to_contain_text("alpha1.2.3The first letter")
    expect(box).to_have_attribute("aria-expanded", "true")
    expect(options.nth(1)).to_contain_text("alphabet")
    box.press("ArrowDown")
    box.press("ArrowDown")
    expect(box).to_have_attribute("aria-activedescendant", "suggestion-1")
    box.press("Enter")
    box.press_sequentially("gam")
    expect(options).to_have_count(1)
    shoot(page, "compose")
    box.press("ArrowDown")
    box.press("Enter")
    page.get_by_label("Platform").select_option("arm64")
    page.get_by_label("with a shell").uncheck()
    page.get_by_label("Tag").fill("stable")
    image = f"127.0.0.1:{server.port}/arm64/alphabet/gamma:stable"
    expect(page.get_by_text(f"docker run --rm -it {image}")).to_be_visible()
    page.get_by_role("button", name="Copy the line for Docker").click()
    expect(page.get_by_role("status")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"docker run --rm -it {image}"
    page.get_by_role("button", name="Copy the line for Kubernetes").click()
    assert f"--image={image} " in page.evaluate("navigator.clipboard.readText()")
    # An image that was not built has no digest yet.
    expect(page.get_by_role("button", name="Copy the line by digest")).to_be_hidden()
    page.get_by_role("button", name="Remove alphabet").click()
    expect(
        page.get_by_text(f"docker run --rm -it 127.0.0.1:{server.port}/arm64/gamma:stable")
    ).to_be_visible()
    box.press("Backspace")
    expect(page.get_by_role("list", name="Chosen packages").get_by_role("listitem")).to_have_count(0)
    assert built


def test_a_composed_image_that_is_stored_is_pulled_by_its_digest(
    open_page: OpenPage, server: Server, built: str, shoot: Shoot
) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    box = page.get_by_role("combobox", name="Packages")
    for package in built.split("/"):
        box.press_sequentially(f"{package} ")
    button = page.get_by_role("button", name="Copy the line by digest")
    button.click()
    expect(page.get_by_role("status")).to_contain_text("Copied")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == f"docker pull 127.0.0.1:{server.port}/{built}@{server.client.digest(built)}"
    button.scroll_into_view_if_needed()
    shoot(page, "digest")
    page.get_by_role("button", name="Remove gamma").click()
    expect(button).to_be_hidden()


def test_completion_finds_programs_and_descriptions(open_page: OpenPage, shoot: Shoot) -> None:
    page = open_page("/")
    box = page.get_by_role("combobox", name="Packages")
    options = page.get_by_role("listbox", name="Packages").get_by_role("option")
    box.press_sequentially("alpha beta ")
    chips = page.get_by_role("list", name="Chosen packages").get_by_role("listitem")
    expect(chips).to_have_count(2)
    # A space between words of a description ends no name.
    box.press_sequentially("fourth letter")
    expect(options).to_have_count(1)
    expect(options).to_contain_text("delta")
    box.press("Enter")
    expect(chips).to_have_count(2)
    box.press("Enter")
    expect(chips).to_have_count(3)
    box.press_sequentially("alphactl")
    expect(options.first).to_contain_text("alphatools")
    box.fill("")
    box.press_sequentially("al")
    expect(options.filter(has_text="another name of alphabet")).to_have_count(1)
    unavailable = options.filter(has_text="alphaunfree")
    expect(unavailable).to_contain_text("unfree")
    expect(unavailable).to_have_class("unavailable")
    expect(options.filter(has_text="alpha++")).to_contain_text("alpha__2b__2b")
    shoot(page, "completion")
    options.filter(has_text="alpha++").get_by_text("details").click()
    page.wait_for_url("**/packages/alpha__2b__2b")


def test_enter_adds_the_name_that_was_typed_and_marks_an_unknown_one(
    open_page: OpenPage, server: Server, shoot: Shoot
) -> None:
    page = open_page("/")
    box = page.get_by_role("combobox", name="Packages")
    options = page.get_by_role("listbox", name="Packages").get_by_role("option")
    chips = page.get_by_role("list", name="Chosen packages").get_by_role("listitem")
    box.press_sequentially("alphab")
    expect(options.first).to_contain_text("alphabet")
    box.press("Enter")
    expect(chips).to_have_count(1)
    expect(chips).to_have_class("unknown")
    expect(chips).to_contain_text("alphab")
    notes = page.locator(".notes li")
    expect(notes).to_contain_text("alphab: no such package. Did you mean")
    expect(
        page.get_by_text(f"docker run --rm -it 127.0.0.1:{server.port}/shell/alphab:latest")
    ).to_be_visible()
    shoot(page, "unknown")
    page.get_by_role("button", name="Use alphabet in place of alphab").click()
    expect(chips).to_have_count(1)
    expect(chips).to_contain_text("alphabet")
    expect(chips).not_to_have_class("unknown")
    box.press_sequentially("alphaunfree")
    expect(options.first).to_contain_text("alphaunfree")
    box.press("Enter")
    expect(chips.nth(1)).to_have_class("unknown")
    expect(notes).to_contain_text("alphaunfree: not available: unfree")


def test_the_page_of_an_image_of_an_unknown_package_offers_near_names(
    open_page: OpenPage, server: Server, shoot: Shoot
) -> None:
    answer = server.client.get("/images/shell/alphab")
    assert answer.status == 404
    page = open_page("/")
    # The browser would report a 404 on its console.
    page.route(
        "**/images/shell/alphab", lambda route: route.fulfill(body=answer.body, content_type="text/html")
    )
    page.goto("/images/shell/alphab")
    expect(page.get_by_text("The package set has no package alphab.")).to_be_visible()
    shoot(page, "no-such-package")
    page.get_by_role("link", name="alphabet").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("shell/alphabet:latest")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_package_has_a_page(open_page: OpenPage, server: Server, shoot: Shoot, dark: bool) -> None:  # noqa: FBT001
    page = open_page("/packages?q=tools", dark=dark, script=False)
    page.get_by_role("link", name="alphatools").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("alphatools 1.0")
    expect(page.get_by_text("https://alpha.example/")).to_be_visible()
    expect(
        page.get_by_text(f"docker run --rm -it 127.0.0.1:{server.port}/shell/alphatools:latest")
    ).to_be_visible()
    # A directory has one state, and so one version.
    expect(page.get_by_role("heading", name="Versions")).to_have_count(0)
    expect(page.get_by_text("linux/arm64")).to_be_visible()
    expect(page.get_by_role("link", name="Compose an image with it")).to_have_attribute(
        "href", "/?packages=alphatools&shell=1#compose"
    )
    shoot(page, "package-dark" if dark else "package")
    page.goto("/packages/images.web")
    expect(page.get_by_role("row", name="beta 0.9")).to_be_visible()
    page.goto("/packages/alphaunfree")
    expect(page.get_by_text("Not available: unfree")).to_be_visible()
    page.goto("/packages?q=alpha")
    expect(page.get_by_role("row", name=re.compile("failing.*no value today"))).to_be_visible()
    shoot(page, "packages-dark" if dark else "packages")


def test_the_lines_to_pull_are_pinned_to_a_commit(
    open_page: OpenPage, versioned: tuple[str, str], shoot: Shoot
) -> None:
    address, commit = versioned
    page = open_page(f"http://{address}/images/shell/hello")
    pinned = page.get_by_text(f"docker run --rm -it {address}/shell/hello:{commit}")
    expect(pinned).to_have_count(0)
    page.get_by_role("button", name="Pin this state").press("Enter")
    expect(pinned).to_be_visible()
    expect(page.get_by_text(f"--image={address}/shell/hello:{commit} nixery")).to_be_visible()
    shoot(page, "pinned")
    page.get_by_role("button", name="Use the tag latest again").click()
    expect(page.get_by_text(f"docker run --rm -it {address}/shell/hello:latest")).to_be_visible()
    # Without a script, it is a link.
    page = open_page(f"http://{address}/images/shell/hello", script=False)
    page.get_by_role("link", name="Pin this state").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"shell/hello:{commit}")
    expect(page.get_by_role("link", name="Pin this state")).to_have_count(0)


def test_a_composed_name_is_kept(open_page: OpenPage) -> None:
    page = open_page("/")
    box = page.get_by_role("combobox", name="Packages")
    box.press_sequentially("beta ")
    page.get_by_role("button", name="Show the image").click()
    page.wait_for_url("**/images/shell/beta:latest")


def test_a_page_follows_a_build_to_its_end(open_page: OpenPage, shoot: Shoot) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    page.get_by_role("combobox", name="Packages").press_sequentially("slow ")
    page.get_by_role("button", name="Build it now").click()
    page.wait_for_url("**/builds/*")
    log = page.get_by_role("log")
    expect(log).to_contain_text("step 2 of 8")
    expect(page.locator("[aria-current=step]")).to_contain_text("Fetch and build")
    expect(page.locator("#building")).to_have_text(re.compile(r"Building slow-1\.0 for \d+\.\d s"))
    expect(page.locator("#built")).to_have_text("0 of 1")
    shoot(page, "build")
    expect(log).to_contain_text("step 8 of 8")
    assert len(re.findall("step 3 of 8", log.inner_text())) == 1
    expect(page.locator("[data-stage=realise]")).to_contain_text("%")
    page.get_by_role("button", name="Copy the log").click()
    assert "step 8 of 8" in page.evaluate("navigator.clipboard.readText()")
    raw = page.get_by_role("link", name="Raw log").get_attribute("href")
    assert "step 8 of 8" in page.request.get(raw or "").text()
    page.get_by_role("link", name="See what is in it, and pull it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("slow:latest")
    expect(page.get_by_role("row", name=re.compile("slow 1.0 288 B MIT"))).to_be_visible()
    page.goto("/")
    expect(page.get_by_role("region", name="Recent builds").get_by_role("link", name="slow")).to_be_visible()


def test_a_build_is_cancelled_on_its_page(open_page: OpenPage, shoot: Shoot) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    page.get_by_role("combobox", name="Packages").press_sequentially("endless ")
    page.get_by_role("button", name="Build it now").click()
    page.wait_for_url("**/builds/*")
    expect(page.get_by_role("log")).to_contain_text("compiling")
    button = page.get_by_role("button", name="Cancel the build")
    shoot(page, "cancel")
    # Nothing happens unless the question is answered.
    page.once("dialog", lambda dialog: dialog.dismiss())
    button.click()
    expect(button).to_be_enabled()
    questions: list[str] = []

    def confirm(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.accept()

    page.once("dialog", confirm)
    button.click()
    expect(page.get_by_role("heading", name="The build was cancelled")).to_be_visible()
    assert questions == ["Cancel this build? Clients that wait for it get an error."]
    expect(page.get_by_role("alert").first).to_contain_text("cancelled by the operator of the server")
    expect(button).to_be_hidden()
    expect(page.locator("#state")).to_have_text("failed")
    shoot(page, "cancelled")
    page.reload()
    expect(page.get_by_role("heading", name="The build was cancelled")).to_be_visible()
    expect(button).to_have_count(0)
    page.goto("/builds?why=cancelled")
    expect(page.get_by_role("row", name=re.compile("endless"))).to_contain_text("cancelled")


def test_a_build_that_cannot_be_followed_keeps_its_last_state(open_page: OpenPage) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    page.get_by_role("combobox", name="Packages").press_sequentially("gradual ")
    # Equivalent to a 503, which the browser would report on its console.
    page.route("**/events", lambda route: route.fulfill(status=204))
    page.get_by_role("button", name="Build it now").click()
    page.wait_for_url("**/builds/*")
    expect(page.locator("#building")).to_contain_text("cannot follow the build any more")

    def has_lines() -> bool:
        page.reload()
        return "step 1 of 8" in page.get_by_role("log").inner_text()

    wait_until(has_lines, "a line of the log", every=0.2)
    expect(page.locator("#building")).to_contain_text("cannot follow the build any more")
    expect(page.get_by_role("log")).to_contain_text("step 1 of 8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_hostile_log_is_text(open_page: OpenPage, server: Server, shoot: Shoot, dark: bool) -> None:  # noqa: FBT001
    answer = server.client.get("/v2/hostile/manifests/latest")
    assert answer.status == 422
    link = re.search(
        rf"its log: http://127\.0\.0\.1:{server.port}(/builds/[0-9a-f]+)", answer.error["message"]
    )
    assert link, answer.error
    page = open_page(link[1], dark=dark)
    expect(page.get_by_role("log")).to_contain_text("<script>document.title = 'owned'")
    expect(page.get_by_role("log")).to_contain_text("</pre><script>")
    expect(page.get_by_role("alert").first).to_contain_text("building hostile-1.0 failed")
    expect(page.get_by_role("heading", name="hostile-1.0 did not build")).to_be_visible()
    expect(page.locator("#tail")).to_contain_text("</pre><script>")
    expect(page.locator("#remembered")).to_contain_text("the server repeats this failure")
    page.get_by_role("button", name="Build again").click()
    expect(page.locator("#problem")).to_contain_text("still repeats this failure")
    assert page.title() == "hostile: build failed"
    assert page.evaluate("document.body.dataset.owned") is None
    shoot(page, "failure-dark" if dark else "failure")
    page.goto("/")
    expect(
        page.get_by_role("region", name="Recent failures").get_by_role("link", name="hostile")
    ).to_be_visible()


@pytest.mark.parametrize("script", [False, True], ids=["without a script", "with a script"])
def test_the_last_lines_of_a_failed_builder_are_in_sight(
    open_page: OpenPage,
    server: Server,
    shoot: Shoot,
    script: bool,  # noqa: FBT001
) -> None:
    link = re.search(r"/builds/[0-9a-f]+", server.client.get("/v2/verbose/manifests/latest").error["message"])
    assert link
    page = open_page(link[0], script=script, width=390)
    tail = page.locator("#tail")
    expect(tail).to_contain_text("error: no semicolon")
    # Nothing of it is below the edge.
    below = (
        "tail => Math.abs(tail.scrollTop) < 1 && getComputedStyle(tail).flexDirection === 'column-reverse'"
    )
    assert tail.evaluate("tail => tail.scrollHeight > tail.clientHeight")
    assert tail.evaluate(below)
    shoot(page, "failure-tail")
    # Its own count of builders would say that one was built.
    expect(page.locator("#built")).not_to_have_text("1")
    page.goto("/images/verbose")
    page.get_by_role("link", name="verbose-1.0 did not build").click()
    page.wait_for_url(f"**{link[0]}")


def test_a_composition_is_there_again_after_a_step_back(open_page: OpenPage) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    page.get_by_label("Platform").select_option("arm64")
    box = page.get_by_role("combobox", name="Packages")
    box.press_sequentially("alpha beta ")
    chips = page.get_by_role("list", name="Chosen packages").get_by_role("listitem")
    expect(chips).to_have_count(2)
    page.get_by_role("button", name="Show the image").click()
    page.wait_for_url("**/images/arm64/alpha/beta:latest")
    page.go_back()
    expect(chips).to_have_count(2)
    expect(page.get_by_label("Platform")).to_have_value("arm64")
    expect(page.get_by_label("with a shell")).not_to_be_checked()
    for script in (True, False):
        page = open_page("/images/shell/alpha/delta:v1", script=script)
        expect(page.get_by_text("This server has no tag v1")).to_be_visible()
        page.get_by_role("link", name="Change the packages").click()
        expect(page.get_by_label("Tag")).to_have_value("latest")
        expect(page.get_by_label("with a shell")).to_be_checked()
        if script:
            expect(page.get_by_role("link", name="delta", exact=True)).to_be_visible()
        else:
            expect(page.get_by_role("textbox", name="Packages")).to_have_value("alpha delta")


def test_words_with_a_meaning_at_the_beginning_of_a_name_are_fields(open_page: OpenPage) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    box = page.get_by_role("combobox", name="Packages")
    for word, key in (("alpha", "Enter"), ("shell", "Enter"), ("arm64", "Enter"), ("shell", " ")):
        box.fill(word)
        box.press(key)
    expect(page.get_by_role("list", name="Chosen packages").get_by_role("listitem")).to_have_count(1)
    expect(box).to_have_value("")
    expect(page.get_by_label("with a shell")).to_be_checked()
    expect(page.get_by_label("Platform")).to_have_value("arm64")


def test_a_hostile_log_is_text_while_it_is_written(open_page: OpenPage) -> None:
    page = open_page("/")
    page.get_by_label("with a shell").uncheck()
    box = page.get_by_role("combobox", name="Packages")
    box.press_sequentially("hos")
    # Results for the first letters may remain for a moment.
    options = page.get_by_role("listbox", name="Packages").get_by_role("option")
    expect(options).to_have_count(1)
    expect(options).to_contain_text("<img src=x onerror=alert(1)>")
    box.press("ArrowDown")
    box.press("Enter")
    box.press_sequentially("delta ")
    page.get_by_role("button", name="Build it now").click()
    page.wait_for_url("**/builds/*")
    expect(page.get_by_role("log")).to_contain_text("</pre><script>")
    expect(page.get_by_role("alert")).to_contain_text("failed")
    assert page.evaluate("document.body.dataset.owned") is None


def test_an_image_has_a_map(open_page: OpenPage, built: str, shoot: Shoot) -> None:
    page = open_page(f"/images/{built}")
    tiles = page.get_by_role("list", name="Layers by size").get_by_role("listitem")
    layers = page.locator("#layers-1 tbody tr")
    assert tiles.count() == layers.count() > 4
    first = tiles.first.get_by_role("link")
    expect(first).to_have_attribute(
        "aria-label", re.compile(r"Layer \d+, 60\d kB, also in 1 other image: alpha-1\.2\.3")
    )
    expect(tiles.nth(1).get_by_role("link")).to_have_attribute(
        "aria-label", re.compile(r"in this image alone: alphabet-2\.0")
    )
    areas = tiles.evaluate_all(
        "tiles => tiles.map(tile => tile.getBoundingClientRect()).map(r => r.width * r.height)"
    )
    whole = page.locator(".treemap.wide").evaluate("map => map.clientWidth * map.clientHeight")
    assert sum(areas) == pytest.approx(whole, rel=0.05)
    assert areas[0] / areas[1] == pytest.approx(600 / 350, rel=0.05)
    headings = page.get_by_role("heading", level=3).all_inner_texts()
    assert headings[-4:] == ["Packages", "Config", "Largest store paths", "Layers, by compressed size"]
    expect(
        page.get_by_role("row", name=re.compile("alphabet 2.0 350 kB BSD-3-Clause All letters"))
    ).to_be_visible()
    expect(page.get_by_role("link", name="alpha/beta/gamma")).to_be_visible()
    shoot(page, "image")
    page.get_by_role("heading", name="Layers, by compressed size").evaluate("h => h.scrollIntoView()")
    shoot(page, "image-layers")
    shoot(open_page(f"/images/{built}", dark=True), "image-dark")


@pytest.mark.parametrize("script", [False, True], ids=["without a script", "with a script"])
def test_a_tile_leads_to_its_layer_and_to_why_a_path_is_here(
    open_page: OpenPage,
    built: str,
    shoot: Shoot,
    script: bool,  # noqa: FBT001
) -> None:
    page = open_page(f"/images/{built}", script=script)
    row = page.locator("#layers-1 tbody tr").first
    expect(row).to_be_hidden()
    tile = page.get_by_role("list", name="Layers by size").get_by_role("link").first
    tile.focus()
    tile.press("Enter")
    expect(row).to_be_in_viewport()
    shoot(page, "image-layer")
    row.get_by_role("link", name="alpha-1.2.3").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Why is alpha-1.2.3 here?")
    expect(page.get_by_role("heading", name="One package needs it")).to_be_visible()
    expect(page.get_by_role("heading", name="alpha 1.2.3 you asked for it")).to_be_visible()
    shoot(page, "why")
    page.get_by_role("link", name=re.compile("layer")).click()
    expect(row).to_be_in_viewport()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_labels_of_a_map_fit_their_tiles(
    open_page: OpenPage,
    built: str,
    shoot: Shoot,
    width: int,
    dark: bool,  # noqa: FBT001
) -> None:
    page = open_page(f"/images/{built}", width=width, dark=dark)
    tiles = page.get_by_role("list", name="Layers by size")
    expect(tiles).to_have_count(1)
    told = tiles.evaluate(
        """map => [...map.querySelectorAll("span")].filter(span => span.clientWidth).map(span => {
            const tile = span.closest("a").getBoundingClientRect(), own = span.getBoundingClientRect();
            return [span.textContent, getComputedStyle(span).fontSize, own.right <= tile.right && own.bottom <= tile.bottom];
        })"""
    )
    assert len(told) >= 4
    assert all(fits for _, _, fits in told), told
    assert {float(size.removesuffix("px")) >= 12 for _, size, _ in told} == {True}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("heading", name="Packages").evaluate("h => h.scrollIntoView()")
    shoot(page, f"image-{width}{'-dark' if dark else ''}")


def test_the_pages_work_without_scripts(open_page: OpenPage, built: str) -> None:
    page = open_page("/", script=False)
    expect(page.get_by_role("button", name="Build it now")).to_be_hidden()
    page.get_by_role("textbox", name="Packages").fill(built.replace("/", " "))
    page.get_by_label("with a shell").uncheck()
    page.get_by_role("button", name="Show the image").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{built}:latest")
    expect(page.get_by_text(f"/{built}:latest").first).to_be_visible()
    expect(page.get_by_role("list", name="Layers by size").get_by_role("listitem").first).to_be_visible()
    page.goto("/")
    page.get_by_role("region", name="Recent builds").get_by_role("link", name=built).click()
    expect(page.get_by_text("The image is ready")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_fit_a_narrow_screen(open_page: OpenPage, built: str, shoot: Shoot, dark: bool) -> None:  # noqa: FBT001
    page = open_page("/", width=360, dark=dark)
    for path in (
        "/",
        f"/images/{built}",
        "/packages?q=alpha",
        "/packages/alphatools",
        "/meta-packages",
        *_FIXED,
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page.goto("/")
    page.get_by_role("combobox", name="Packages").press_sequentially("alp")
    expect(page.get_by_role("listbox", name="Packages").get_by_role("option").first).to_be_in_viewport()
    shoot(page, "narrow-dark" if dark else "narrow")


def test_the_keyboard_reaches_everything_in_order(open_page: OpenPage) -> None:
    page = open_page("/")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
    site = ["Compose", "Packages", "Images", "Builds", "Help"]
    assert reached[:7] == ["Skip to the content", "nixery", *site]
    start = reached.index("packages")
    assert reached[7:10] == ["Package set", "State", "In use since"]
    assert reached[start : start + 4] == ["packages", "platform", "tag", "shell"]


def test_the_content_security_policy_allows_own_files_only(open_page: OpenPage, server: Server) -> None:
    headers = server.client.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    page = open_page("/")
    assert page.evaluate("document.querySelectorAll('script:not([src]), [style], style').length") == 0
    assert json.loads(server.client.get("/api/v1/builds").body)["builds"] is not None


def test_pages_have_targets_for_fingers(open_page: OpenPage, built: str) -> None:
    page = open_page("/", width=390, touch=True)
    expect(page.locator("#packages-help")).to_contain_text("tap a suggestion")
    expect(page.locator("#packages-help")).not_to_contain_text("arrow keys")
    for path in ("/", "/packages?q=alpha", "/packages/alphatools", f"/images/{built}", *_FIXED):
        page.goto(path)
        assert page.evaluate(_SMALL_TARGETS) == [], path


def test_builds_are_filtered_in_a_list(open_page: OpenPage, server: Server, built: str, shoot: Shoot) -> None:
    server.client.get("/v2/alpah/manifests/latest")
    server.client.get("/v2/hostile/manifests/latest")
    page = open_page("/")
    failures = page.get_by_role("region", name="Recent failures")
    expect(failures.get_by_role("row", name=re.compile("^alpah .*no such package"))).to_be_visible()
    failures.get_by_role("link", name="All failures").click()
    expect(
        page.get_by_role("row", name=re.compile("^hostile .*build error.*building hostile-1.0 failed")).first
    ).to_be_visible()
    page.get_by_label("Reason").select_option("no such package")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("row", name=re.compile("^alpah "))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("hostile"))).to_have_count(0)
    shoot(page, "builds")
    page.goto("/builds?state=done")
    expect(page.get_by_role("link", name=built)).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 800})
    page.get_by_role("link", name=built).scroll_into_view_if_needed()
    expect(page.get_by_role("link", name=built)).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(page, "builds-narrow")


def test_a_stored_image_is_copied_by_its_digest(open_page: OpenPage, server: Server, built: str) -> None:
    page = open_page("/images?q=alpha/alphabet")
    expect(
        page.get_by_role("row", name=re.compile(f"^{built.replace('/', '.')}:latest .* 1.3 MB "))
    ).to_be_visible()
    page.get_by_role("button", name=f"Copy the reference of {built} by digest").click()
    expect(page.get_by_role("status")).to_contain_text("Copied")
    reference = page.evaluate("navigator.clipboard.readText()")
    assert reference == f"127.0.0.1:{server.port}/{built}@{server.client.digest(built)}"
    page.get_by_role("link", name=built).click()
    expect(page.get_by_text(f"docker pull {reference}")).to_be_visible()


def test_words_lead_to_the_glossary(open_page: OpenPage) -> None:
    page = open_page("/", script=False)
    page.get_by_role("link", name="State", exact=True).click()
    page.wait_for_url("**/help#state")
    expect(page.get_by_text("The package set at one moment")).to_be_in_viewport()


def test_the_api_is_described_without_scripts(open_page: OpenPage, shoot: Shoot) -> None:
    page = open_page("/docs", script=False)
    page.get_by_text("Start a build without waiting for it.").click()
    expect(page.get_by_text("TOOMANYREQUESTS").first).to_be_attached()
    shoot(page, "docs")


def test_an_image_opened_in_a_browser_leads_to_its_page(
    open_page: OpenPage, built: str, server: Server
) -> None:
    # Not ``goto``: the browser reports the 404 on its console.
    answer = server.client.get(f"/{built}:latest", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    link = re.search(rb'href="(/images/[^"]+)"', answer.body)
    assert link
    page = open_page(link[1].decode())
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{built}:latest")
    # The registry's errors too.
    browser = {"Accept": "text/html", "User-Agent": "Mozilla/5.0", "Sec-Fetch-Site": "none"}
    answer = server.client.get("/v2/UPPER/manifests/latest", browser)
    assert (answer.status, answer.headers["content-type"]) == (400, "text/html; charset=utf-8")
    assert server.client.get("/v2/UPPER/manifests/latest").error["code"] == "NAME_INVALID"
