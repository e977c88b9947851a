"""axe-core finds no violation on any kind of page, in either colour scheme, on a wide and a narrow screen."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PACKAGES, OpenPage, Shoot
from tests.support.nix import nix_environment, wait_until
from tests.support.server import HOST, Server, running_server

_AXE = (files("axe_playwright_python") / "axe.min.js").read_text()

# All rules that are on by default, best practices too, and the size of targets (WCAG 2.2).
_VIOLATIONS = """
    async () => {
      for (const folded of document.querySelectorAll("details")) folded.open = true;
      const { violations, passes } = await axe.run(document, { rules: { "target-size": { enabled: true } } });
      if (passes.length < 10) throw new Error("axe-core looked at too little");
      return violations.flatMap(({ id, help, nodes }) => nodes.map(({ html, any, all, none }) =>
        [id, help, html.slice(0, 300), [...any, ...all, ...none].map(({ message }) => message).join("; ")].join(" | ")));
    }
"""

# What a browser asks for when somebody opens an address.
_BROWSER = {"Accept": "text/html", "User-Agent": "Mozilla/5.0", "Sec-Fetch-Site": "none"}


@dataclass(frozen=True)
class Site:
    """A server with something to see on every page.

    Attributes:
        paths: of all kinds of pages, by name.
        running: the path of a build in progress.
    """

    address: str
    server: Server
    paths: dict[str, str]
    running: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("accessibility")
    package_set = directory / "set"
    package_set.mkdir()
    salt = json.dumps(secrets.token_hex(8))
    (package_set / "default.nix").write_text(
        f"arguments: import {PACKAGES} (arguments // {{ salt = {salt}; }})\n"
    )
    settings = {"NIXERY_PKGS_PATH": str(package_set), "NIXERY_INDEX": "1", "NIX_TIMEOUT": "3600"}
    with running_server(directory / "server", settings | nix_environment(directory)) as server:
        image = "alpha/alphabet/beta/delta/gamma"
        for name in ("alpha/beta/gamma", image):
            assert server.client.manifest(name).status == 200
        assert server.client.manifest("alphab").status == 404
        failure = server.client.manifest("hostile").error["message"]
        failed = re.search(r"/builds/[0-9a-f]+", failure)
        assert failed, failure
        done = {
            build["name"]: build["page"] for build in server.client.get("/api/v1/builds").json()["builds"]
        }
        running = _start(server, "endless")
        wait_until(lambda: server.client.get(f"{running}/log").body == b"compiling\n", "the builder writes")
        why = re.search(r'href="(\?why=[^"]+)"', server.client.get(f"/images/{image}").body.decode())
        assert why
        paths = {
            "home": "/",
            "packages": "/packages?q=alpha",
            "no-package": "/packages?q=zzz",
            "package": "/packages/alphatools",
            "unavailable": "/packages/alphaunfree",
            "meta-packages": "/meta-packages",
            "image": f"/images/{image}",
            "image-not-built": "/images/shell/delta",
            "why": f"/images/{image}{why[1]}",
            "images": "/images",
            "build-done": done[image],
            "build-failed": failed[0],
            "builds": "/builds",
            "help": "/help",
            "docs": "/docs",
            # The browser would report their statuses on its console: see _show_error.
            "error-address": "/no/such/page",
            "error-image": "/images/shell/alphab",
            "error-registry": "/v2/UPPER/manifests/latest",
            "error-build": "/builds/0123",
        }
        yield Site(f"http://{HOST}:{server.port}", server, paths, running)
        # The build in progress ends with the server.
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_has_a_violation(
    open_page: OpenPage,
    site: Site,
    shoot: Shoot,
    width: int,
    dark: bool,  # noqa: FBT001
) -> None:
    page = open_page(site.address, width=width, dark=dark)
    found: list[str] = []

    def look(name: str) -> None:
        page.evaluate(_AXE)
        found.extend(f"{name}: {violation}" for violation in page.evaluate(_VIOLATIONS))
        if (needed := page.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"{name}: the page is {needed} pixels wide")
        shoot(page, f"every-{name}-{width}{'-dark' if dark else ''}")

    for name, path in site.paths.items():
        if name.startswith("error-"):
            _show_error(page, site, path)
        else:
            page.goto(site.address + path)
        look(name)

    # States of pages that only a script makes.
    page.goto(site.address + site.running)
    expect(page.locator("#building")).to_contain_text("Building endless-1.0 for")
    look("build-running")
    page.goto(site.address)
    box = page.get_by_role("combobox", name="Packages")
    box.press_sequentially("alphab")
    box.press("Enter")
    expect(page.locator(".notes li")).to_contain_text("Did you mean")
    box.press_sequentially("alp")
    expect(page.get_by_role("listbox", name="Packages").get_by_role("option").first).to_be_visible()
    look("home-composing")
    assert not found, "\n".join(found)


def _start(server: Server, name: str) -> str:
    """Start a build; return the path of its page."""
    connection = server.client.connect()
    try:
        body = json.dumps({"name": name})
        connection.request("POST", "/api/v1/builds", body, {"Content-Type": "application/json"})
        page: str = json.loads(connection.getresponse().read())["builds"][0]["page"]
    finally:
        connection.close()
    return page


def _show_error(page: Page, site: Site, path: str) -> None:
    answer = site.server.client.get(path, _BROWSER)
    assert answer.status >= 400
    assert answer.headers["content-type"].startswith("text/html")
    headers = {name: answer.headers[name] for name in ("content-type", "content-security-policy")}
    page.route(site.address + path, lambda route: route.fulfill(body=answer.body, headers=headers))
    page.goto(site.address + path)
