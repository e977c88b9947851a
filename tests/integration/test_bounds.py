"""A request beyond a bound is refused with the name of the setting, and other requests are served."""

from __future__ import annotations

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_observability import value
from tests.integration.test_pages import get, post
from tests.support.client import InBackground
from tests.support.nix import NixSpy, children_of, processes_with_environment, wait_until
from tests.support.server import Server
from tests.validator.image_validator import validate


def nix_processes(server: Server) -> list[str]:
    # Children alone: a process that Nix forks has Nix's command line until it executes the builder.
    children = children_of(server.process.pid, direct=True).values()
    return [command for command in children if any("nix-" in word for word in command.split()[:2])]


def test_a_full_queue_refuses_with_retry_after(start_server: StartServer, spy: NixSpy) -> None:
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
    # The first request takes the only place in the queue.
    wait_until(lambda: not all(other.is_running for other in others.values()), "the second one is refused")
    (name,) = (name for name, other in others.items() if other.is_running)
    waiting = others.pop(name)
    (refused,) = (other.result() for other in others.values())
    assert (refused.status, refused.error["code"]) == (429, "TOOMANYREQUESTS")
    assert "NIXERY_MAX_BUILDS" in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    status, headers, answer = post(server, b'{"name": "right"}')
    assert (status, answer["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
    assert 1 <= int(headers["retry-after"]) <= 60
    # A stored image and builds in progress need no place in the queue.
    assert server.client.manifest("hello").body == cached.body
    assert [post(server, f'{{"name": "{n}"}}'.encode())[0] for n in ("hello", "sleeps", name)] == [202] * 3
    assert {report["name"] for report in get(server.client, "/api/v1/builds")["builds"]} <= {
        "hello",
        "sleeps",
        name,
    }
    joined_before = value(server, "nixery_builds_joined_total") or 0
    joined = [InBackground(server.client, f"/v2/{n}/manifests/latest").start() for n in ("sleeps", name)]
    wait_until(
        lambda: value(server, "nixery_builds_joined_total") == joined_before + 2, "both join the builds"
    )
    assert len(spy.calls_of("nix-instantiate")) == 1
    assert server.stop() == 0
    assert {request.result().status for request in (running, waiting, *joined)} == {429}


def test_no_more_nix_processes_than_builds(start_server: StartServer, spy: NixSpy, salt: str) -> None:
    server = start_server(NIXERY_MAX_BUILDS="2", NIXERY_MAX_QUEUED_PER_CLIENT="8", **spy.environment())
    names = ["slow", "right", "hello", "left", "diamond", "many", "outputs", "users"]
    with spy.holding("--realise"):
        requests = [InBackground(server.client, f"/v2/{name}/manifests/latest").start() for name in names]
        wait_until(lambda: value(server, "nixery_builds_queued") == len(names) - 2, "all others wait")
        wait_until(lambda: len(spy.calls_of("nix-store", "--realise")) == 2, "two builds run")
        assert len(nix_processes(server)) == 2
    most = 0
    while any(request.is_running for request in requests):
        most = max(most, len(nix_processes(server)))
    assert {request.result().status for request in requests} == {200}
    assert most <= 2
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


def test_a_name_with_too_many_packages_is_refused(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_MAX_PACKAGES="2", **spy.environment())
    spy.forget()
    refused = server.client.manifest("hello/left/diamond")
    assert (refused.status, refused.error["code"]) == (400, "NAME_INVALID")
    assert "NIXERY_MAX_PACKAGES" in refused.error["message"]
    assert spy.calls == []
    # Neither the packages that `shell` stands for nor repetitions count.
    validate(server.client.pull("shell/hello/left/hello"))


def test_a_build_beyond_its_total_timeout_is_ended(start_server: StartServer, salt: str) -> None:
    server = start_server(NIXERY_BUILD_TIMEOUT="8", NIX_TIMEOUT="60", NIXERY_MAX_BUILDS="1")
    slow = InBackground(server.client, "/v2/sleeps/manifests/latest").start()
    wait_until(lambda: bool(nix_processes(server)), "the build begins")
    # The timeout of a queued build begins when the build does.
    fast = InBackground(server.client, "/v2/slow/hello/manifests/latest").start()
    refused = slow.result()
    assert (refused.status, refused.error["code"]) == (422, "MANIFEST_UNKNOWN")
    assert "NIXERY_BUILD_TIMEOUT" in refused.error["message"]
    assert fast.result().status == 200
    wait_until(lambda: not processes_with_environment(salt), "no builder is left")
