"""A real browser in front of a real server with real Nix."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support.nix import nix_environment
from tests.support.repository import Repository
from tests.support.server import HOST, Server, running_server

PACKAGES = Path(__file__).parent / "packageset"
_SCREENSHOTS = Path(__file__).parents[2] / "var" / "screenshots"

# Milliseconds.
_TIMEOUT = 30_000

OpenPage = Callable[..., Page]
Shoot = Callable[[Page, str], None]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("browser")
    package_set = directory / "set"
    package_set.mkdir()
    salt = json.dumps(secrets.token_hex(8))
    (package_set / "default.nix").write_text(
        f"arguments: import {PACKAGES} (arguments // {{ salt = {salt}; }})\n"
    )
    settings = {"NIXERY_PKGS_PATH": str(package_set), "NIXERY_INDEX": "1", **nix_environment(directory)}
    with running_server(directory / "server", settings) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    return f"http://{HOST}:{server.port}"


@pytest.fixture
def versioned(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of a server whose packages come from a repository, and the latest commit."""
    repository = Repository(tmp_path / "repository")
    commit = repository.commit("1.0")
    settings = {"NIXERY_PKGS_REPO": repository.url, **nix_environment(tmp_path)}
    with running_server(tmp_path / "server", settings) as server:
        yield f"{HOST}:{server.port}", commit


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable, "chromium is not installed (run scripts/install_chromium.sh)"
    expect.set_options(timeout=_TIMEOUT)
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Open a page of the server; any error on its console fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(
        path: str, *, script: bool = True, width: int = 1200, dark: bool = False, touch: bool = False
    ) -> Page:
        context = browser.new_context(
            base_url=address,
            java_script_enabled=script,
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            is_mobile=touch,
            permissions=["clipboard-read", "clipboard-write"],
        )
        contexts.append(context)
        context.set_default_timeout(_TIMEOUT)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def shoot() -> Shoot:
    """Take a screenshot of a page."""
    _SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def shoot(page: Page, name: str) -> None:
        page.screenshot(path=_SCREENSHOTS / f"{name}.png", animations="disabled")

    return shoot


@pytest.fixture(scope="session")
def built(server: Server) -> str:
    """The name of an image that is already built."""
    for name in ("alpha/beta/gamma", "alpha/alphabet/beta/delta/gamma"):
        server.client.manifest(name)
    return "alpha/alphabet/beta/delta/gamma"
