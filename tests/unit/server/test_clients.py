"""Clients and their addresses, the public URL, and refused requests."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from nixery.image.platform import AMD64, ARM64
from nixery.request_context import INTERNAL, Client
from nixery.server.clients import Clients, base_url, host, image_path, is_forwarded, refusal
from nixery.server.http import Request
from tests.fuzz.application import _Headers, _Scope

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")]


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("192.0.2.7:1234", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:1234", "2001:db8:1:2::/64"),
        ("[::ffff:192.0.2.7]:1234", "192.0.2.7"),
        ("[fe80::1%2]:1234", "fe80::/64"),
    ],
)
def test_a_client_is_an_address_or_a_site(peer: str, name: str) -> None:
    assert Clients().client(peer, {}) == Client(name)


def test_a_peer_without_an_address_is_internal() -> None:
    assert Clients().client("", {}) == INTERNAL


@pytest.mark.parametrize(
    ("forwarded", "name"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db9::1]:4711", "2001:db9::/64"),
        ("[2001:db9::1]", "2001:db9::/64"),
        ("2001:db9::1", "2001:db9::/64"),
        # The client's own text is to the left of the proxies' addresses.
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9, 10.1.1.1 , 10.1.1.2", "203.0.113.9"),
        ("1.1.1.1, nonsense, 10.1.1.1", "10.1.1.1"),
        ("unknown", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("," * 10_000, "10.0.0.1"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
    ],
)
def test_behind_proxies_the_client_is_the_last_untrusted_address(forwarded: str, name: str) -> None:
    headers = {"x-forwarded-for": forwarded}
    clients = Clients(PROXIES)
    assert clients.client("10.0.0.1:1234", clients.trusted_headers(headers, "10.0.0.1:1234")) == Client(name)


@pytest.mark.security
@pytest.mark.parametrize(("proxies", "name"), [(15, "192.0.2.9"), (16, "10.0.0.1"), (10_000, "10.0.0.1")])
def test_few_addresses_of_proxies_are_read(proxies: int, name: str) -> None:
    """A client in the network of the proxies blocked the event loop for a tenth of a second with each request."""
    headers = {"x-forwarded-for": ",".join(["192.0.2.9", *["10.0.0.1"] * proxies])}
    assert Clients(PROXIES).client("10.0.0.1:4711", headers).name == name


def test_forwarding_headers_of_other_peers_are_ignored() -> None:
    headers = {
        "host": "a",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "x-request-id": "forged",
        "forwarded": "for=127.0.0.1",
        "traceparent": "00-1-2-01",
        "baggage": "a=b",
    }
    for clients, peer in ((Clients(), "10.0.0.1:1"), (Clients(PROXIES), "192.0.2.7:1")):
        trusted_headers = clients.trusted_headers(headers, peer)
        assert trusted_headers == {"host": "a"}
        assert clients.client(peer, trusted_headers).name == peer[:-2]
    assert Clients(PROXIES).trusted_headers(headers, "10.0.0.1:1") == headers
    assert is_forwarded(headers)
    assert not is_forwarded({"host": "a", "x-request-id": "mine"})


def asked(**headers: str) -> Request:
    return Request("GET", "/", {name.replace("_", "-"): value for name, value in headers.items()})


def test_the_host_comes_from_the_proxy_or_the_client() -> None:
    assert host(asked(host="registry.example:8080")) == "registry.example:8080"
    assert host(asked(host="[::1]:8080")) == "[::1]:8080"
    assert host(asked(host="inside:1", x_forwarded_host="outside.example, proxy")) == "outside.example"
    assert base_url(asked(host="a.example", x_forwarded_proto="https")) == "https://a.example"


def test_a_url_begins_with_https_if_the_server_has_tls() -> None:
    assert base_url(replace(asked(host="a.example"), encrypted=True)) == "https://a.example"
    behind = replace(asked(host="a.example", x_forwarded_proto="http"), encrypted=True)
    assert base_url(behind) == "http://a.example"
    public = replace(asked(host="a.example"), encrypted=True, public_url="http://b.example")
    assert base_url(public) == "http://b.example"


@pytest.mark.parametrize(
    "claimed", ["", "a b", "evil/", "user@evil", "<script>", '"', "a..\n", "-a", "a:b", "a" * 300]
)
def test_an_invalid_host_is_ignored(claimed: str) -> None:
    assert host(asked(host=claimed)) == "localhost"
    assert host(asked(host="real", x_forwarded_host=claimed)) == "real"


def test_the_path_of_an_image_names_its_platform_unless_it_is_the_default() -> None:
    assert image_path("shell/git", "linux/amd64", [AMD64]) == "shell/git"
    assert image_path("shell/git", "linux/arm64", [AMD64]) == "arm64/shell/git"
    assert image_path("shell/git", "linux/amd64", [AMD64, ARM64]) == "amd64/shell/git"
    assert image_path("amd64", "linux/amd64", [AMD64], "v1") == "amd64:v1"


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


def test_requests_of_registry_clients_are_admitted() -> None:
    for agent in ("docker/27.0 go/1.22", "containerd/1.7", "skopeo/1.9", "curl/8", "python-httpx/0.28", ""):
        assert refused(headers={"user-agent": agent}) is None
    for name in ("a", "a.b:1", "[::1]:5000", "under_score:80", "127.0.0.1", "xn--nxasmq6b"):
        assert refused(headers={"host": name}) is None


@pytest.mark.parametrize("host", ["a, b", "a,b", "a b", "a/b", "user@a", "[::1", "a:b:c", "a" * 400])
def test_an_invalid_host_field_is_refused(host: str) -> None:
    assert refused(headers={"host": host}) == 400


def test_only_http_1_0_may_omit_the_host() -> None:
    assert refused(headers={"host": ""}) == 400
    assert refused(headers={"host": ""}, version="1") is None


def test_long_paths_and_queries_are_refused() -> None:
    assert refused("/images/" + "a/" * 508) is None
    assert refused("/images/" + "a/" * 511) == 414
    # The specification defines the responses to these.
    assert refused("/v2/" + "a/" * 511) is None
    assert refused(query="n=1&" * 1000) is None
    assert refused(query="n=1&" * 1100) == 414


@pytest.mark.parametrize(
    "path",
    [
        MANIFEST,
        "/v2/git/manifests/sha256:0",
        "/api/v1/builds",
        "/api/v1/packages",
        f"/nix-cache/{'0' * 32}.narinfo",
    ],
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
def test_requests_caused_by_another_site_are_refused(path: str, headers: dict[str, str]) -> None:
    assert refused(path, headers) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "http://registry.example:8080"},
        # TLS ends at a proxy that does not say so.
        {"origin": "https://registry.example:8080"},
        # A proxy that replaces the Host header; the browser's statement takes precedence.
        {"sec-fetch-site": "same-origin", "origin": "https://outside.example"},
    ],
)
def test_requests_of_our_own_pages_are_admitted(headers: dict[str, str]) -> None:
    assert refused("/api/v1/builds", headers) is None
    assert refused(MANIFEST, headers) is None


def test_a_browser_without_fetch_metadata_starts_no_build() -> None:
    firefox = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
    assert refused(MANIFEST, firefox) == 403
    # The server's own pages send these, and they start no build.
    assert refused("/api/v1/packages", firefox) is None
    assert refused("/images/git", firefox) is None
    assert refused(MANIFEST, {**firefox, "sec-fetch-site": "none"}) is None


def test_other_sites_may_link_to_pages_but_not_embed_them() -> None:
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert refused("/images/git", cross) is None
    assert refused("/images/git", {**cross, "sec-fetch-dest": "image", "sec-fetch-mode": "no-cors"}) == 403
    assert refused("/images/git", {**cross, "sec-fetch-dest": "iframe"}) == 403


def test_only_the_public_url_counts_as_our_own_site() -> None:
    ours = {"origin": "https://registry.example", "sec-fetch-site": "same-origin"}
    assert refused("/api/v1/builds", ours, public_url="https://registry.example") is None
    # DNS rebinding: a page resolves its own name to the server's address.
    rebound = {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"}
    assert refused("/api/v1/builds", rebound, public_url="https://registry.example") == 403
