"""The API and the pages, without a browser."""

from __future__ import annotations

import http.client
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import wait_until
from tests.support.repository import Repository
from tests.support.server import HOST, Server

_SET = Path(__file__).parents[1] / "browser" / "packageset"


def post(
    server: Server, body: bytes, content_type: str = "application/json"
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
    try:
        connection.request("POST", "/api/v1/builds", body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    finally:
        connection.close()


def events(server: Server, url: str, after: int | None = None) -> list[dict[str, Any]]:
    """All events of a build until its end."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    try:
        connection.request(
            "GET", f"{url}/events", headers={} if after is None else {"Last-Event-ID": str(after)}
        )
        response = connection.getresponse()
        assert response.getheader("content-type") == "text/event-stream"
        found = []
        for block in response.read().decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append(
                    {"id": int(fields["id"]), "event": fields["event"], **json.loads(fields["data"])}
                )
        return found
    finally:
        connection.close()


def get(client: RegistryClient, path: str) -> Any:  # noqa: ANN401 -- JSON is anything
    response = client.get(path)
    assert response.status == 200, response
    return json.loads(response.body)


def wait_for_end(client: RegistryClient, url: str) -> dict[str, Any]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        report: dict[str, Any] = get(client, url)
        if report["ended"] is not None:
            return report
        time.sleep(0.05)
    raise AssertionError("the build does not end")


def test_a_build_started_by_the_api_is_followed_to_its_end(start_server: StartServer) -> None:
    server = start_server()
    status, headers, answer = post(server, b'{"name": "greeting"}')
    (build,) = answer["builds"]
    assert (status, headers["location"]) == (202, build["url"])
    received = events(server, build["url"])
    assert [event["event"] for event in received[:-1]] == ["change"] * (len(received) - 1)
    assert received[-1]["event"] == "end"
    assert received[-1]["build"]["state"] == "done"
    numbers = [event["id"] for event in received]
    assert numbers == sorted(set(numbers))
    assert [event["id"] for event in events(server, build["url"], numbers[-2])] == [numbers[-1]]
    image = get(server.client, "/api/v1/images/greeting:latest")
    (platform,) = image["platforms"]
    assert platform["digest"] == received[-1]["build"]["manifest"] == server.client.digest("greeting")
    assert platform["size"] == sum(layer["size"] for layer in platform["layers"])
    assert ("greeting", "1.0") in {(p["name"], p["version"]) for p in platform["packages"]}
    _, _, again = post(server, b'{"name": "greeting"}')
    assert wait_for_end(server.client, again["builds"][0]["url"])["state"] == "found"


def test_servers_of_a_storage_show_the_same_builds(start_server: StartServer) -> None:
    one, other = start_server(), start_server()
    _, _, answer = post(one, b'{"name": "slow"}')
    (build,) = answer["builds"]
    first = get(other.client, build["url"])
    assert first["state"] in {"waiting", "running"}
    assert [build["id"] for build in get(other.client, "/api/v1/builds")["builds"]] == [build["id"]]
    assert other.client.get(build["page"]).status == 200
    received = events(other, build["url"])
    assert received[-1]["event"] == "end"
    assert received[-1]["build"]["state"] == "done"
    failure = one.client.get("/v2/failsinbytes/manifests/latest").error["message"]
    path = failure.rpartition(str(one.port))[2]
    assert other.client.get(path).status == 200
    assert events(other, f"/api/v1{path}")[-1]["build"]["state"] == "failed"
    assert "failsinbytes" in other.client.get("/").body.decode()
    assert other.client.get(f"{path}/log").body == one.client.get(f"{path}/log").body


def test_builds_are_known_after_a_restart(start_server: StartServer) -> None:
    server = start_server()
    server.client.manifest("hello")
    server.client.get("/v2/failsinbytes/manifests/latest")
    before = get(server.client, "/api/v1/builds")
    assert server.stop() == 0
    client = start_server().client
    end = time.monotonic() + 10
    while (after := get(client, "/api/v1/builds")) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert after == before
    assert {build["name"] for build in after["builds"]} == {"hello", "failsinbytes"}
    assert [build["name"] for build in get(client, "/api/v1/builds?state=failed")["builds"]] == [
        "failsinbytes"
    ]


def test_images_that_share_layers_are_listed(start_server: StartServer) -> None:
    client = start_server().client
    for name in ("hello", "hello/greeting"):
        client.manifest(name)
    (platform,) = get(client, "/api/v1/images/hello/greeting")["platforms"]
    (shared,) = platform["shared"]
    assert shared["image"] == "hello"
    assert 0 < shared["layers"] < len(platform["layers"])


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b'{"name": "hello"}', "text/plain", 415, "UNSUPPORTED"),
        (b"name=hello", "application/x-www-form-urlencoded", 415, "UNSUPPORTED"),
        (b"no json", "application/json", 400, "UNSUPPORTED"),
        (b"{}", "application/json", 400, "UNSUPPORTED"),
        (b'{"name": "hello", "more": 1}', "application/json", 400, "UNSUPPORTED"),
        (b'{"name": "UPPER"}', "application/json", 400, "NAME_INVALID"),
        (b'{"name": "hello", "tag": "-"}', "application/json", 404, "MANIFEST_UNKNOWN"),
        (b'{"name": "' + b"a" * 20_000 + b'"}', "application/json", 413, "SIZE_INVALID"),
    ],
)
def test_an_invalid_request_starts_no_build(
    server: Server, body: bytes, content_type: str, status: int, code: str
) -> None:
    found, _, answer = post(server, body, content_type)
    assert (found, answer["errors"][0]["code"]) == (status, code)


def test_package_names_are_completed(client: RegistryClient) -> None:
    answer = get(client, "/api/v1/packages?q=hel&limit=3")
    assert answer["packages"][0]["name"] == "hello"
    assert answer["total"] > 20
    assert get(client, "/api/v1/packages/camelcase")["name"] == "camelcase"
    assert client.get("/api/v1/packages/nothing-like-it").error["code"] == "NAME_UNKNOWN"


def test_a_package_is_described(start_server: StartServer) -> None:
    client = start_server(NIXERY_INDEX="1", NIXERY_PKGS_PATH=str(_SET)).client

    def is_complete() -> bool:
        return bool(get(client, "/api/v1/index")["complete"])

    wait_until(is_complete, "a complete index", every=0.2)
    index = get(client, "/api/v1/index")
    assert index["evaluated"] == index["attributes"] > 10
    (failure,) = index["failures"]
    assert (failure["attribute"], index["failed"]) == ("failing", 1)
    assert "no value today" in failure["reason"]
    assert [one["name"] for one in get(client, "/api/v1/packages?q=alphactl")["packages"]] == ["alphatools"]
    alpha = get(client, "/api/v1/packages/alpha__2b__2b")
    assert (alpha["attribute"], alpha["available"], alpha["kind"]) == ("alpha++", True, "package")
    assert alpha["outputs"]["out"].startswith("/nix/store/")
    web = get(client, "/api/v1/packages/images.web")
    assert (web["kind"], web["description"]) == ("definition", "Serves letters")
    assert [package["name"] for package in web["contents"]] == ["beta", "gamma"]
    assert b"Image definition" in client.get("/packages/images.web").body
    letters = get(client, "/api/v1/packages/letters")
    assert (letters["kind"], [one["name"] for one in letters["contents"]]) == ("list", ["alpha", "beta"])
    # A directory has no versions to pin.
    client.manifest("delta")
    assert get(client, "/api/v1/images/delta")["pin"]["tag"] is None
    page = client.get("/images/delta").body
    assert b'id="pin"' not in page
    assert b'<a href="/packages/delta">delta</a>' in page


def test_an_unknown_tag_is_explained_by_the_versions_of_known_states(
    start_server: StartServer, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "repository")
    old = repository.commit("3.10")
    repository.git("branch", "stable")
    new = repository.commit("3.11")
    server = start_server(NIXERY_PKGS_REPO=repository.url, NIXERY_PKGS_PATH=None, NIXERY_INDEX="1")
    client = server.client

    def versions(tag: str) -> list[tuple[str, str, str]]:
        found = get(client, f"/api/v1/packages/hello?tag={tag}")["versions"]
        return [(one["version"], one["revision"], one["tag"]) for one in found]

    expected = [("3.10", old, "stable"), ("3.11", new, "latest")]
    wait_until(
        lambda: sorted(versions("stable")) == sorted(versions("latest")) == expected, "two states", every=0.5
    )
    message = client.get("/v2/hello/manifests/3.11").error["message"]
    assert "a tag is a state of the package set, not a version of a package; here, hello is 3.1" in message
    assert "3.11 at latest" in message
    assert "3.10 at stable" in message
    assert "\n" not in message
    assert f'href="/images/hello:{new}"' in client.get("/images/hello").body.decode()
    assert client.get(f"/images/hello:{new}").status == 200
    page = client.get("/packages/hello").body
    assert b"hello:stable" in page
    assert old.encode() in page


def test_builds_that_are_not_public_are_hidden(start_server: StartServer) -> None:
    server = start_server(NIXERY_PUBLIC_BUILDS="0")
    error = server.client.get("/v2/failsinbytes/manifests/latest").error
    assert "/builds/" not in error["message"]
    (build,) = get(server.client, "/api/v1/builds")["builds"]
    for path in ("/", build["page"], build["url"], "/api/v1/builds"):
        body = server.client.get(path).body
        assert b"hidden" in body, path
        assert b"failsinbytes" not in body, path
    received = json.dumps(events(server, build["url"])).encode()
    assert b"hidden" in received
    metrics = server.client.get("/metrics").body
    # The last line of the log is that of the error.
    for body in (received, metrics):
        assert not re.search(b"failsinbytes|log ends|exit code", body)


def test_the_message_about_a_failure_links_to_its_log(client: RegistryClient, server: Server) -> None:
    first = client.get("/v2/failsinbytes/manifests/latest").error["message"]
    assert f"its log: http://{HOST}:{server.port}/builds/" in first
    assert client.get("/v2/failsinbytes/manifests/latest").error["message"] == first
    path = first.rpartition(str(server.port))[2]
    assert client.get(path).status == 200


def test_the_page_of_an_image_does_not_build_it(start_server: StartServer) -> None:
    client = start_server().client
    assert b"Not built yet" in client.get("/images/hello").body
    assert client.get("/api/v1/images/hello").error["code"] == "MANIFEST_UNKNOWN"
    assert get(client, "/api/v1/builds") == {"builds": []}


def test_the_page_of_an_image_says_why_it_has_a_store_path(start_server: StartServer) -> None:
    server = start_server()
    server.client.manifest("hello/diamond")
    page = server.client.get("/images/hello/diamond").body.decode()
    path = re.findall(r'\?why=([0-9a-z]{32}-left[^"]*)"', page)[0]
    answer = server.client.get(f"/images/hello/diamond?why={path}")
    why = answer.body.decode()
    assert answer.status == 200
    assert "Why is left" in why
    assert "One package needs it" in why
    chain = why[why.index("you asked for it") :]
    assert re.search(r"-diamond[^<]*</a>.*refers to.*<b>left", chain[: chain.index("</ol>")], re.DOTALL)
    assert server.client.get("/images/hello/diamond?why=none").status == 404
    assert server.stop() == 0
    # The record of a server that runs no more: no process asks Nix.
    client = start_server().client
    assert client.get(f"/images/hello/diamond?why={path}").status == 200


def test_the_near_names_of_pages_are_those_of_the_registry(start_server: StartServer) -> None:
    client = start_server().client
    client.get("/api/v1/packages?q=")  # lists the names
    error = client.get("/v2/helo/manifests/latest").error
    near = error["detail"]["packages"][0]["did_you_mean"]
    assert near[0] == "hello"
    (checked,) = get(client, "/api/v1/names?q=helo")["names"]
    assert checked == {"name": "helo", "exists": False, "reason": None, "near_names": near}
    page = client.get("/images/shell/helo")
    assert page.status == 404
    assert re.findall(r'<a href="/images/shell/([^":]+):latest">', page.body.decode()) == near
    assert client.get("/api/v1/packages/helo").error["message"].endswith(f"did you mean {' or '.join(near)}?")


@pytest.mark.parametrize("name", ["<script>", "UPPER", "a..b", "a'onload='x"])
def test_an_invalid_name_is_escaped_on_the_error_page(client: RegistryClient, name: str) -> None:
    response = client.get(f"/images/{quote(name)}")
    assert response.status == 400
    assert response.headers["content-type"].startswith("text/html")
    assert b"<script>" not in response.body
    assert b"'onload" not in response.body
