"""Take the screenshots in docs/screenshots: ``python -m scripts.screenshots``, run by ``make screenshots``.

A real server serves Debian's packages, and Chromium shows its pages. A few minutes the first time, while Nix
fetches.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from scripts.peers.nixery import nixery
from scripts.peers.process import Peer, PeerError

_DIRECTORY = Path("docs/screenshots")
_IMAGE = "shell/git/postgresql/python3"
_SIMILAR = "shell/python3/jq"
_FAILING = "shell/jq-color"
_MISSPELT = "shell/gti"

# Seconds; packages may have to be fetched first.
_BUILD_TIMEOUT = _INDEX_TIMEOUT = 900
# Milliseconds.
_PAGE_TIMEOUT = 60_000


def main() -> int:
    """Take all screenshots; return the exit status."""
    executable = shutil.which("chromium")
    if executable is None:
        print("screenshots: chromium is not installed (run scripts/install_chromium.sh)", file=sys.stderr)
        return 1
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-", dir="var") as name:
        directory = Path(name).resolve()
        package_set = directory / "set"
        package_set.mkdir()
        ours = Path(__file__).resolve().parent / "default.nix"
        # A new salt makes Nix rebuild the packages of earlier screenshots.
        (package_set / "default.nix").write_text(
            f"arguments: import {ours} (arguments // {{ salt = {json.dumps(secrets.token_hex(8))}; }})\n"
        )
        try:
            with (
                nixery(directory / "server", str(package_set), {"NIX_TIMEOUT": "600"}) as server,
                sync_playwright() as playwright,
            ):
                expect.set_options(timeout=_PAGE_TIMEOUT)
                # Chromium's sandbox does not work for root.
                browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
                _take(server, browser)
                browser.close()
        except PeerError as error:
            print(f"screenshots: {error}", file=sys.stderr)
            return 1
    return 0


def _take(server: Peer, browser: Browser) -> None:
    _pull(server, _SIMILAR)
    _pull(server, "postgresql")
    _pull(server, _FAILING)

    _wait_for_index(server)
    page = _open(server, browser, "/")
    _compose(page, ("git", "python3"), "postgresql")
    _save(page, "compose")
    _save(_open(server, browser, "/packages/git"), "package")
    page = _open(server, browser, "/")
    _compose(page, ("git", "postgresql", "python3"), "")
    _save(page, "home")

    page = _open(server, browser, "/")
    _compose(page, tuple(_IMAGE.split("/")[1:]), "")
    page.get_by_role("button", name="Build it now").click()
    page.wait_for_url("**/builds/*")
    expect(page.get_by_role("log")).to_contain_text("unpacking /usr/bin/git")
    page.wait_for_timeout(1500)
    _save(page, "build")
    build = page.url.removeprefix(f"http://{server.address}")
    page = _open(server, browser, build, width=390, dark=True)
    expect(page.locator("#building")).to_contain_text("Building git-")
    _save(page, "build-narrow-dark")

    _pull(server, _IMAGE)
    page = _open(server, browser, f"/images/{_IMAGE}")
    page.get_by_role("heading", name="Layers, by compressed size").evaluate(
        "heading => heading.scrollIntoView()"
    )
    _save(page, "image-layers")
    page.get_by_role("list", name="Layers by size").get_by_role("link").first.click()
    _save(page, "image-layer")
    _save(_open(server, browser, f"/images/{_IMAGE}", dark=True), "image-dark")

    page = _open(server, browser, "/")
    page.get_by_role("region", name="Recent failures").get_by_role("link", name=_FAILING).click()
    page.wait_for_url("**/builds/*")
    _save(page, "failure")
    _save(_open(server, browser, page.url, dark=True), "failure-dark")

    _pull(server, _MISSPELT)
    _save(_open(server, browser, "/builds"), "builds")
    _save(_open(server, browser, "/images"), "images")
    _save(_open(server, browser, "/help#set"), "help")

    page = _open(server, browser, "/", width=360, dark=True)
    _compose(page, (), "postgresql")
    page.get_by_role("listbox", name="Packages").get_by_role("option").first.scroll_into_view_if_needed()
    _save(page, "narrow-dark")


def _open(server: Peer, browser: Browser, path: str, *, width: int = 1200, dark: bool = False) -> Page:
    page = browser.new_context(
        base_url=f"http://{server.address}",
        viewport={"width": width, "height": 800},
        color_scheme="dark" if dark else "light",
    ).new_page()
    page.set_default_timeout(_PAGE_TIMEOUT)
    page.goto(path)
    return page


def _compose(page: Page, chosen: tuple[str, ...], typed: str) -> None:
    box = page.get_by_role("combobox", name="Packages")
    for name in chosen:
        box.press_sequentially(f"{name} ")
    if typed:
        box.press_sequentially(typed)
        # Wait until the list matches the complete input.
        option = page.get_by_role("listbox", name="Packages").get_by_role("option").first
        expect(option).to_contain_text(typed)
        page.wait_for_timeout(500)


def _save(page: Page, name: str) -> None:
    page.screenshot(path=_DIRECTORY / f"{name}.png", animations="disabled")
    print(f"{_DIRECTORY}/{name}.png")


def _wait_for_index(server: Peer) -> None:
    """Wait until the server has evaluated all packages: two minutes for Debian's."""
    end = time.monotonic() + _INDEX_TIMEOUT
    while time.monotonic() < end:
        with urllib.request.urlopen(f"http://{server.address}/api/v1/index", timeout=60) as response:
            if json.load(response)["complete"]:
                return
        time.sleep(1)
    raise PeerError("the package index is not complete")


def _pull(server: Peer, image: str) -> None:
    """Ask for a manifest, and wait until it is built or the build has failed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_BUILD_TIMEOUT)
    try:
        connection.request("GET", f"/v2/{image}/manifests/latest")
        response = connection.getresponse()
        response.read()
        print(f"{image}: {response.status}")
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
