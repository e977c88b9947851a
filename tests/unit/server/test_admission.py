"""What is refused before anything looks at it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixery.server.clients import refusal
from nixery.server.http import Request
from tests.fuzz.application import _Headers, _Scope

MANIFEST = "/v2/git/manifests/latest"


def refused(
    path: str = MANIFEST,
    headers: dict[str, str] | None = None,
    query: str = "",
    version: str = "1.1",
    public_url: str | None = None,
) -> int | None:
    given = {"host": "registry.example:8080", **(headers or {})}
    request = Request(
        "GET", path, {name: value for name, value in given.items() if value}, public_url=public_url
    )
    scope = replace(_Scope("GET", path, query, _Headers([])), http_version=version)
    answer = refusal(request, query, scope)
    return answer.status if answer else None


def test_what_clients_of_a_registry_send_is_taken() -> None:
    for agent in ("docker/27.0 go/1.22", "containerd/1.7", "skopeo/1.9", "curl/8", "python-httpx/0.28", ""):
        assert refused(headers={"user-agent": agent}) is None
    for host in ("a", "a.b:1", "[::1]:5000", "under_score:80", "127.0.0.1", "xn--nxasmq6b"):
        assert refused(headers={"host": host}) is None


@pytest.mark.parametrize("host", ["a, b", "a,b", "a b", "a/b", "user@a", "[::1", "a:b:c", "a" * 400])
def test_a_host_is_one_host(host: str) -> None:
    assert refused(headers={"host": host}) == 400


def test_only_http_1_0_goes_without_a_host() -> None:
    assert refused(headers={"host": ""}) == 400
    assert refused(headers={"host": ""}, version="1") is None


def test_paths_and_queries_have_an_end() -> None:
    assert refused("/images/" + "a/" * 508) is None
    assert refused("/images/" + "a/" * 511) == 414
    # The specification has answers to these.
    assert refused("/v2/" + "a/" * 511) is None
    assert refused(query="n=1&" * 1000) is None
    assert refused(query="n=1&" * 1100) == 414


@pytest.mark.parametrize(
    "path", [MANIFEST, "/v2/git/manifests/sha256:0", "/api/v1/builds", "/api/v1/packages"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
        {"origin": "https://evil.example"},
        {"origin": "http://evil.example:8080"},
        {"origin": "null"},
        {"origin": "http://registry.example"},
        {"origin": ""} | {"sec-fetch-site": "nonsense"},
        {"origin": "http://["},
        {"origin": "http://registry.example:8080]"},
        {"origin": "http://\u2100.example"},
    ],
)
def test_another_site_starts_nothing(path: str, headers: dict[str, str]) -> None:
    assert refused(path, headers) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "http://registry.example:8080"},
        # TLS ends at a proxy that does not say so.
        {"origin": "https://registry.example:8080"},
        # A proxy that hides our name from us; the browser knows better.
        {"sec-fetch-site": "same-origin", "origin": "https://outside.example"},
    ],
)
def test_our_own_pages_do(headers: dict[str, str]) -> None:
    assert refused("/api/v1/builds", headers) is None
    assert refused(MANIFEST, headers) is None


def test_a_browser_that_does_not_say_whose_page_it_shows_has_nothing_built() -> None:
    firefox = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
    assert refused(MANIFEST, firefox) == 403
    # Our own pages ask these, and nothing is built for them.
    assert refused("/api/v1/packages", firefox) is None
    assert refused("/images/git", firefox) is None
    assert refused(MANIFEST, {**firefox, "sec-fetch-site": "none"}) is None


def test_others_may_link_to_pages_and_not_embed_them() -> None:
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert refused("/images/git", cross) is None
    assert refused("/images/git", {**cross, "sec-fetch-dest": "image", "sec-fetch-mode": "no-cors"}) == 403
    assert refused("/images/git", {**cross, "sec-fetch-dest": "iframe"}) == 403


def test_a_known_name_is_the_only_one() -> None:
    ours = {"origin": "https://registry.example", "sec-fetch-site": "same-origin"}
    assert refused("/api/v1/builds", ours, public_url="https://registry.example") is None
    # A page had its own name resolved to our address.
    rebound = {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"}
    assert refused("/api/v1/builds", rebound, public_url="https://registry.example") == 403
