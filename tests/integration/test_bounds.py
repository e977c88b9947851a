"""What is asked for beyond the bounds is refused, named, and nothing else suffers."""

from __future__ import annotations

import time

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_pages import get, post
from tests.support.client import InBackground
from tests.support.nix import NixSpy, children_of, processes_with_environment, wait_until
from tests.support.server import Server
from tests.validator.image_validator import validate


def nix_processes(server: Server) -> list[str]:
    # What Nix starts for a builder has Nix's command line until it becomes the builder.
    children = children_of(server.process.pid, direct=True).values()
    return [command for command in children if command.startswith("nix-")]


def test_a_full_queue_is_told_when_to_come_back(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_MAX_BUILDS="1", NIXERY_MAX_QUEUED="1", **spy.environment())
    cached = server.client.manifest("hello")
    assert cached.status == 200
    spy.forget()
    running = InBackground(server.client, "/v2/sleeps/manifests/latest").start()
    wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build begins")
    others = {
        name: InBackground(server.client, f"/v2/{name}/manifests/latest").start()
        for name in ("greeting", "left")
    }
    # One of them finds a place in the queue, whichever is first.
    wait_until(lambda: not all(other.is_running for other in others.values()), "the other one is refused")
    (name,) = (name for name, other in others.items() if other.is_running)
    waiting = others.pop(name)
    (refused,) = (other.result() for other in others.values())
    assert (refused.status, refused.error["code"]) == (429, "TOOMANYREQUESTS")
    assert "NIXERY_MAX_BUILDS" in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    status, headers, answer = post(server, b'{"name": "right"}')
    assert (status, answer["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
    assert 1 <= int(headers["retry-after"]) <= 60
    # What is known, and what somebody has begun, is not refused.
    assert server.client.manifest("hello").body == cached.body
    assert [post(server, f'{{"name": "{n}"}}'.encode())[0] for n in ("hello", "sleeps", name)] == [202] * 3
    assert {report["name"] for report in get(server.client, "/api/v1/builds")["builds"]} <= {
        "hello",
        "sleeps",
        name,
    }
    joined = [InBackground(server.client, f"/v2/{n}/manifests/latest").start() for n in ("sleeps", name)]
    time.sleep(0.5)
    assert running.is_running
    assert waiting.is_running
    assert all(request.is_running for request in joined)
    assert len(spy.calls_of("nix-instantiate")) == 1
    assert server.stop() == 0
    assert {request.result().status for request in (running, waiting, *joined)} == {503}


def test_never_more_processes_than_builds(start_server: StartServer, salt: str) -> None:
    server = start_server(NIXERY_MAX_BUILDS="2")
    names = ["slow", "right", "hello", "left", "diamond", "many", "outputs", "users"]
    requests = [InBackground(server.client, f"/v2/{name}/manifests/latest").start() for name in names]
    most = 0
    while any(request.is_running for request in requests):
        most = max(most, len(nix_processes(server)))
        time.sleep(0.005)
    assert {request.result().status for request in requests} == {200}
    assert most == 2
    assert processes_with_environment(salt) == {}


def test_an_index_needs_no_more_than_one_slot(start_server: StartServer) -> None:
    server = start_server(
        NIXERY_MAX_BUILDS="1", NIXERY_MAX_QUEUED="1", NIXERY_PLATFORMS="linux/amd64,linux/arm64"
    )
    accepted = {"Accept": "application/vnd.oci.image.index.v1+json"}
    index = server.client.get("/v2/hello/manifests/latest", accepted)
    assert index.status == 200
    assert len(index.json()["manifests"]) == 2


@pytest.mark.parametrize("limit", ["1M", "1MiB", "1048576"])
def test_a_closure_that_is_too_large_names_its_largest_paths(start_server: StartServer, limit: str) -> None:
    server = start_server(NIXERY_MAX_CLOSURE=limit)
    refused = server.client.manifest("big/hello")
    assert (refused.status, refused.error["code"]) == (422, "MANIFEST_UNKNOWN")
    assert "NIXERY_MAX_CLOSURE" in refused.error["message"]
    detail = refused.error["detail"]
    assert detail["limit"] == 1 << 20
    assert detail["size"] > 1 << 20
    assert detail["largest"][0]["path"].endswith("-big-1.0")
    assert detail["largest"][0]["path"] in refused.error["message"]
    assert not [path for path in (server.storage / "blobs").rglob("*") if path.is_file()]
    validate(server.client.pull("hello"))


def test_a_name_with_too_many_packages(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_MAX_PACKAGES="2", **spy.environment())
    spy.forget()
    refused = server.client.manifest("hello/left/diamond")
    assert (refused.status, refused.error["code"]) == (400, "NAME_INVALID")
    assert "NIXERY_MAX_PACKAGES" in refused.error["message"]
    assert spy.calls == []
    # What a shell brings along was not asked for by name, and neither was what comes twice.
    validate(server.client.pull("shell/hello/left/hello"))


def test_a_build_that_takes_too_long_in_all(start_server: StartServer, salt: str) -> None:
    server = start_server(NIXERY_BUILD_TIMEOUT="8", NIX_TIMEOUT="60", NIXERY_MAX_BUILDS="1")
    slow = InBackground(server.client, "/v2/sleeps/manifests/latest").start()
    wait_until(lambda: bool(nix_processes(server)), "the build begins")
    # Its eight seconds begin when its turn comes.
    fast = InBackground(server.client, "/v2/slow/hello/manifests/latest").start()
    refused = slow.result()
    assert (refused.status, refused.error["code"]) == (504, "UNKNOWN")
    assert "NIXERY_BUILD_TIMEOUT" in refused.error["message"]
    assert fast.result().status == 200
    wait_until(lambda: not processes_with_environment(salt), "no builder is left", 5)
