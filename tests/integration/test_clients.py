"""The effect of one client on others, and which headers of clients are trusted. Each address of this machine is a client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Self

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_pages import post
from tests.support.client import InBackground, RegistryClient
from tests.support.nix import WITHOUT_DATABASE, NixSpy, wait_until
from tests.support.raw_http import exchange, parse_responses
from tests.support.server import HOST, Server, free_port

pytestmark = pytest.mark.security

# Packages of the test set; their subsets are images that no client has requested before.
_PACKAGES = ["hello", "greeting", "left", "right", "diamond", "many", "outputs", "users", "loud", "bytelog"]

_MODEST = [f"127.0.0.{number}" for number in range(3, 8)]


def seen_from(server: Server, address: str, timeout: float = 120) -> RegistryClient:
    return replace(server.client, source=address, timeout=timeout)


class Greedy:
    """Requests builds without pause, from one address."""

    def __init__(self, server: Server) -> None:
        self._client = seen_from(server, "127.0.0.2")
        self._over = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._post), threading.Thread(target=self._get)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _names(self) -> Iterator[str]:
        while True:
            for size in range(3, 8):
                for names in combinations(_PACKAGES, size):
                    yield "/".join(names)

    def _post(self) -> None:
        with closing(self._client.connect()) as connection:
            for name in self._names():
                if self._over.is_set():
                    return
                body = json.dumps({"name": name})
                connection.request("POST", "/api/v1/builds", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)

    def _get(self) -> None:
        for name in self._names():
            if self._over.is_set():
                return
            InBackground(replace(self._client, timeout=1), f"/v2/{name}/manifests/latest").start()
            self._over.wait(0.1)


def test_a_greedy_client_does_not_starve_others(start_server: StartServer) -> None:
    # Builds that start no process of Nix end sooner than one client can request others.
    server = start_server(NIXERY_MAX_BUILDS="1", NIXERY_MAX_QUEUED="20", **WITHOUT_DATABASE)
    with Greedy(server) as greedy:
        wait_until(
            lambda: greedy.statuses.count(429) > 500, "one client requests more than the server has", 60
        )
        modest = {
            address: InBackground(
                seen_from(server, address), f"/v2/{_PACKAGES[number]}/manifests/latest"
            ).start()
            for number, address in enumerate(_MODEST)
        }
        assert {address: asked.result(120).status for address, asked in modest.items()} == dict.fromkeys(
            _MODEST, 200
        )
        refused = seen_from(server, "127.0.0.2").manifest("/".join(_PACKAGES))
        if refused.status == 429:
            assert "NIXERY_MAX_QUEUED_PER_CLIENT" in refused.error["message"]


def test_a_client_with_many_builds_does_not_delay_others(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_MAX_BUILDS="1", NIXERY_MAX_QUEUED="20", **spy.environment())
    sleeping = InBackground(seen_from(server, "127.0.0.2"), "/v2/slow/manifests/latest").start()
    wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build begins")
    names = ["left", "right", "diamond", "many", "outputs", "hello"]
    for name in names:
        assert post(server, json.dumps({"name": name}).encode())[0] == 202
    assert seen_from(server, "127.0.0.3").manifest("hello").status == 200
    assert sleeping.result().status == 200
    asked = [name for call in spy.calls_of("nix-instantiate") for name in names if f'"{name}"' in call]
    assert asked.index("hello") < 2, asked


@contextmanager
def silent(server: Server, addresses: list[str]) -> Iterator[None]:
    """Connect from addresses and send nothing."""
    with ExitStack() as stack:
        for address in addresses:
            connection = stack.enter_context(socket.socket())
            connection.bind((address, 0))
            connection.settimeout(10)
            connection.connect((HOST, server.port))
        yield


def test_connections_of_one_client_do_not_block_others(start_server: StartServer) -> None:
    port = free_port()
    server = start_server(NIXERY_ADMIN_PORT=str(port))
    with silent(server, ["127.0.0.2"] * 1100):
        for address in _MODEST:
            assert seen_from(server, address, 10).get("/v2/").status == 200
        assert RegistryClient(HOST, port, 10).get("/readyz").status == 200
        assert server.client.get("/healthz").status == 200
        wait_until(lambda: "too many connections from one address" in server.log, "the limit is logged", 30)


@pytest.mark.parametrize(
    ("settings_of_its_own", "number"),
    [({}, 1100), ({"NIXERY_MAX_CONNECTIONS": "32", "NIXERY_MAX_CONNECTIONS_PER_CLIENT": "2"}, 200)],
)
def test_connections_of_many_clients_do_not_block_others(
    start_server: StartServer, settings_of_its_own: dict[str, str], number: int
) -> None:
    server = start_server(**settings_of_its_own)
    # More connections to the second server than its web server accepts at once.
    with silent(server, [f"127.0.{1 + one // 200}.{1 + one % 200}" for one in range(number)]):
        for address in _MODEST:
            assert seen_from(server, address, 20).get("/v2/").status == 200


def test_a_request_that_waits_for_its_build_keeps_its_connection(start_server: StartServer) -> None:
    server = start_server(NIXERY_MAX_CONNECTIONS="16", NIXERY_MAX_CONNECTIONS_PER_CLIENT="4")
    waiting = InBackground(seen_from(server, "127.0.0.2"), "/v2/slow/manifests/latest").start()
    with silent(server, ["127.0.0.2"] * 10 + [f"127.0.1.{number}" for number in range(40)]):
        assert waiting.result().status == 200


def test_health_and_metrics_have_their_own_port(start_server: StartServer) -> None:
    port = free_port()
    server = start_server(NIXERY_ADMIN_PORT=str(port))
    admin, public = RegistryClient(HOST, port), server.client
    assert admin.get("/healthz").json() == {"status": "ok"}
    assert set(admin.get("/readyz").json()["checks"]) == {"server", "storage", "nix", "source"}
    assert b"nixery_http_requests_total" in admin.get("/metrics").body
    assert admin.get("/v2/").status == 404
    assert public.get("/healthz").json() == {"status": "ok"}
    assert public.get("/readyz").json() == {"status": "ready"}
    assert (public.get("/metrics").status, public.request("POST", "/metrics").status) == (404, 404)
    assert server.stop() == 0


def test_loopback_clients_see_metrics_but_proxied_requests_do_not(client: RegistryClient) -> None:
    assert "checks" in client.get("/readyz").json()
    assert client.get("/metrics").status == 200
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    assert client.get("/readyz", forwarded).json() == {"status": "ready"}
    assert client.get("/metrics", forwarded).status == 404


def test_an_admin_port_in_use_is_reported(start_server: StartServer) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(AssertionError, match=r"ended with 2:\n.*NIXERY_ADMIN_PORT"):
            start_server(NIXERY_ADMIN_PORT=str(taken.getsockname()[1]))


_FORGED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "203.0.113.9",
    "X-Request-Id": "forged",
}


def test_only_trusted_proxies_set_the_client_address(start_server: StartServer) -> None:
    server = start_server(NIXERY_TRUSTED_PROXIES="127.0.0.9")
    response = server.client.get("/v2/fails/manifests/latest", _FORGED)
    assert response.headers["x-request-id"] != "forged"
    assert "evil.example" not in response.error["message"]
    assert b"evil.example" not in server.client.get("/", _FORGED).body
    assert "203.0.113.9" not in server.log
    proxy = seen_from(server, "127.0.0.9")
    assert proxy.get("/v2/fails/manifests/latest", _FORGED).headers["x-request-id"] == "forged"
    assert b"evil.example" in proxy.get("/", _FORGED).body
    assert "https://evil.example/builds/" in proxy.get("/v2/fails/manifests/latest", _FORGED).error["message"]
    assert "203.0.113.9" in server.log


def test_clients_behind_a_proxy_have_separate_shares(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(
        NIXERY_MAX_BUILDS="1",
        NIXERY_MAX_QUEUED="4",
        NIXERY_TRUSTED_PROXIES="127.0.0.0/8",
        **spy.environment(),
    )
    slow = InBackground(
        server.client, "/v2/slow/manifests/latest", {"X-Forwarded-For": "203.0.113.1"}
    ).start()
    wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build begins")
    greedy = [
        InBackground(
            server.client, f"/v2/{name}/manifests/latest", {"X-Forwarded-For": "203.0.113.1"}
        ).start()
        for name in ("left", "right", "diamond", "many")
    ]
    wait_until(lambda: sum(one.is_running for one in greedy) == 2, "two of them are refused")
    modest = server.client.get("/v2/hello/manifests/latest", {"X-Forwarded-For": "203.0.113.1, 203.0.113.2"})
    assert modest.status == 200
    assert slow.result().status == 200
    assert sorted(one.result().status for one in greedy) == [200, 200, 429, 429]


def test_links_use_the_public_url(start_server: StartServer) -> None:
    server = start_server(NIXERY_PUBLIC_URL="https://registry.example.org/")
    message = server.client.get("/v2/fails/manifests/latest", {"Host": "evil.example"}).error["message"]
    assert "https://registry.example.org/builds/" in message
    page = server.client.get("/", {"Host": "evil.example"}).body
    assert b"evil.example" not in page
    assert b'data-host="registry.example.org"' in page


@pytest.mark.parametrize(
    ("host", "status"),
    [(b"", 400), (b"Host: a\r\nHost: a\r\n", 400), (b"Host: a b\r\n", 400), (b"Host: a:80\r\n", 200)],
)
def test_a_request_needs_exactly_one_host(server: Server, host: bytes, status: int) -> None:
    sent = b"GET /v2/ HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n"
    (response,) = parse_responses(exchange((HOST, server.port), sent), ["GET"])
    assert response.status == status


def test_http_1_0_needs_no_host(server: Server) -> None:
    (response,) = parse_responses(exchange((HOST, server.port), b"GET /v2/ HTTP/1.0\r\n\r\n"), ["GET"])
    assert response.status == 200


def test_requests_from_another_site_start_no_build(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(**spy.environment())
    spy.forget()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"},
    ):
        refused = server.client.get("/v2/hello/manifests/latest", headers)
        assert (refused.status, refused.error["code"]) == (403, "DENIED")
    assert server.client.get("/images/hello", {"Sec-Fetch-Site": "cross-site"}).status == 403
    assert spy.calls == []


def test_responses_forbid_content_sniffing(server: Server) -> None:
    manifest = server.client.manifest("big").json()
    large = max(manifest["layers"], key=lambda layer: layer["size"])["digest"]
    paths = ["/v2/", "/v2/big/manifests/latest", f"/v2/big/blobs/{large}", "/v2/big/blobs/x", "/nothing"]
    paths += ["/v2/big/tags/list", "/", "/static/site.css", "/api/v1/builds", "/healthz", "/v2/" + "a" * 5000]
    for path in paths:
        assert server.client.get(path).headers["x-content-type-options"] == "nosniff", path
        assert server.client.head(path).headers["x-content-type-options"] == "nosniff", path


def test_names_are_not_listed_where_builds_are_not_public(start_server: StartServer) -> None:
    server = start_server(NIXERY_PUBLIC_BUILDS="0")
    assert server.client.manifest("hello").status == 200
    for path in (
        "/v2/_catalog",
        "/v2/hello/tags/list",
        "/v2/never/built/tags/list",
        "/v2/_catalog?n=1&last=a",
    ):
        answer = server.client.get(path)
        assert (answer.status, answer.error["code"]) == (403, "DENIED")
        assert "hello" not in answer.error["message"]
    assert server.client.get("/v2/Not%20a%20name/tags/list").status == 400


def test_log_lines_of_one_client_are_limited(start_server: StartServer) -> None:
    server = start_server()
    with closing(seen_from(server, "127.0.0.2").connect()) as greedy:
        for number in range(3000):
            greedy.request("GET", f"/v2/hello/blobs/{number}", headers={"User-Agent": "x" * 500})
            greedy.getresponse().read()
    lines = [line for line in server.log.splitlines() if "127.0.0.2" in line and "/blobs/" in line]
    assert 100 < len(lines) < 1500
    assert seen_from(server, "127.0.0.3").get("/v2/hello/blobs/mine").status == 400
    assert "/v2/hello/blobs/mine" in server.log
    wait_until(lambda: "log lines suppressed" in server.log, "the suppressed lines are counted", 30)
    (summary, *_) = [json.loads(line) for line in server.log.splitlines() if "log lines suppressed" in line]
    assert (summary["client"], summary["lines"] >= 3000 - len(lines) - 100) == ("127.0.0.2", True)


def test_followers_of_one_client_do_not_block_others(start_server: StartServer) -> None:
    server = start_server(NIXERY_MAX_FOLLOWERS="3", NIXERY_MAX_FOLLOWERS_PER_CLIENT="2")
    _, _, begun = post(server, b'{"name": "sleeps"}')
    url = f"{begun['builds'][0]['url']}/events"
    with ExitStack() as stack:

        def follow(address: str) -> http.client.HTTPResponse:
            connection = seen_from(server, address).connect()
            stack.callback(connection.close)
            connection.request("GET", url)
            return connection.getresponse()

        greedy = [follow("127.0.0.2") for _ in range(4)]
        assert [answer.status for answer in greedy] == [200, 200, 429, 429]
        assert 1 <= int(greedy[2].headers["Retry-After"]) <= 60
        assert "NIXERY_MAX_FOLLOWERS_PER_CLIENT" in greedy[2].read().decode()
        others = [follow(address) for address in _MODEST]
        assert [answer.status for answer in others] == [200, 200, 429, 429, 429]
